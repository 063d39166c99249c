-- Writes an event for each job that a statement inserts or updates.
--
-- Progress becomes an event only when it crosses a multiple of 10 percent, so that a worker
-- that reports often does not fill the table. Errors and reasons are cut to 1000 characters.
--
-- The service says which event a change is: it writes `last_event`, `last_edited` and the version
-- that they describe, `last_event_version`. `is_current` is true if that is the new version of the
-- job. Otherwise the UPDATE did not write these columns: it was made by hand, or by a process that
-- still runs the release before them. Its event then follows from the columns that differ.
--
-- `edited` has the names of the fields that an edit of a pending job changed. An edit that
-- also changes the status becomes one event, of the status; an edit that changes nothing
-- becomes none.
--
-- `xid` is always 0: SQLite has one writer at a time, so the order of the ids suffices.
--
-- EventKind: 0 = created, 1 = started, 2 = claimed, 3 = progressed, 4 = succeeded, 5 = failed,
--   6 = retried, 7 = lease_expired, 8 = cancelled, 9 = edited, 10 = released, 12 = timed_out
-- JobStatus: 0 = pending, 1 = running, 2 = success, 3 = failed, 4 = cancelled

DROP TRIGGER IF EXISTS jobapi_note_inserted;
CREATE TRIGGER jobapi_note_inserted
  AFTER INSERT ON jobapi_jobs
BEGIN
  INSERT INTO jobapi_events (
    workspace_id, xid, at, kind, job_id, job_type, from_status, to_status, attempt, actor, worker,
    data
  )
    SELECT
      NEW.workspace_id, 0, strftime('%Y-%m-%d %H:%M:%f000', 'now'), 0, NEW.job_id, NEW.job_type,
      NULL, NEW.status, NULL, NEW.changed_by, NULL, NULL;
END;

DROP TRIGGER IF EXISTS jobapi_note_updated;
CREATE TRIGGER jobapi_note_updated
  AFTER UPDATE ON jobapi_jobs
BEGIN
  INSERT INTO jobapi_events (
    workspace_id, xid, at, kind, job_id, job_type, from_status, to_status, attempt, actor, worker,
    data
  )
    SELECT
      NEW.workspace_id, 0, strftime('%Y-%m-%d %H:%M:%f000', 'now'), kind, NEW.job_id, NEW.job_type,
      OLD.status, NEW.status, NEW.attempt, NEW.changed_by,
      CASE WHEN 1 IN (OLD.status, NEW.status) THEN NEW.worker END,
      CASE
        WHEN edited <> '' THEN CASE kind
          WHEN 5 THEN json_object('error', substr(NEW.error, 1, 1000), 'fields', edited)
          WHEN 8 THEN json_object(
            'reason', CASE json_type(NEW.result, '$.cancelled_reason')
              WHEN 'text' THEN substr(json_extract(NEW.result, '$.cancelled_reason'), 1, 1000)
            END,
            'fields', edited
          )
          ELSE json_object('fields', edited)
        END
        WHEN kind = 3 THEN json_object(
          'progress_percent', NEW.progress_percent, 'progress_message', NEW.progress_message
        )
        WHEN kind IN (5, 7, 12) OR (kind = 6 AND OLD.status = 1)
          THEN json_object('error', substr(NEW.error, 1, 1000))
        WHEN kind = 6 THEN json_object(
          'reason', CASE json_type(NEW.result, '$.retry_reason')
            WHEN 'text' THEN substr(json_extract(NEW.result, '$.retry_reason'), 1, 1000)
          END
        )
        WHEN kind = 8 THEN json_object(
          'reason', CASE json_type(NEW.result, '$.cancelled_reason')
            WHEN 'text' THEN substr(json_extract(NEW.result, '$.cancelled_reason'), 1, 1000)
          END
        )
      END
    FROM (
      SELECT edited, CASE
        WHEN is_current THEN NEW.last_event
        WHEN OLD.status = NEW.status THEN CASE
          WHEN NEW.status = 1
            AND coalesce(NEW.progress_percent, 0) / 10 <> coalesce(OLD.progress_percent, 0) / 10
            THEN 3
          WHEN edited <> '' THEN 9
        END
        WHEN NEW.status = 1 THEN CASE WHEN NEW.lease_token IS NULL THEN 1 ELSE 2 END
        WHEN NEW.status = 2 THEN 4
        WHEN NEW.status = 4 THEN 8
        WHEN NEW.changed_by IS NULL AND NEW.error = 'lease expired' THEN 7
        WHEN NEW.changed_by IS NULL AND NEW.error = 'timed out' THEN 12
        WHEN NEW.status = 3 THEN 5
        WHEN NEW.retry_count > OLD.retry_count THEN 6
        ELSE 10
      END AS kind
      FROM (
        SELECT is_current, CASE
          WHEN is_current THEN coalesce(NEW.last_edited, '')
          WHEN OLD.status = 0 AND NEW.version <> OLD.version AND NEW.lease_token IS NULL THEN trim(
            CASE WHEN NEW.priority IS NOT OLD.priority
              THEN 'priority ' ELSE '' END
            || CASE WHEN NEW.scheduled_at IS NOT OLD.scheduled_at
              THEN 'scheduled_at ' ELSE '' END
            || CASE WHEN NEW.estimated_duration IS NOT OLD.estimated_duration
              THEN 'estimated_duration ' ELSE '' END
            || CASE WHEN NEW.max_retries IS NOT OLD.max_retries
              THEN 'max_retries ' ELSE '' END
            || CASE WHEN NEW.timeout_seconds IS NOT OLD.timeout_seconds
              THEN 'timeout_seconds ' ELSE '' END
            || CASE WHEN NEW.metadata IS NOT OLD.metadata
              THEN 'metadata ' ELSE '' END
          )
          ELSE ''
        END AS edited
        FROM (
          SELECT NEW.version <> OLD.version AND NEW.last_event_version = NEW.version AS is_current
        ) AS said
      ) AS edits
    ) AS noted
    WHERE kind IS NOT NULL;
END;
