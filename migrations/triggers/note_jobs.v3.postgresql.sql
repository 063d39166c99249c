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
-- EventKind: 0 = created, 1 = started, 2 = claimed, 3 = progressed, 4 = succeeded, 5 = failed,
--   6 = retried, 7 = lease_expired, 8 = cancelled, 9 = edited, 10 = released, 12 = timed_out
-- JobStatus: 0 = pending, 1 = running, 2 = success, 3 = failed, 4 = cancelled

CREATE OR REPLACE FUNCTION jobapi_note_jobs() RETURNS trigger LANGUAGE plpgsql
-- Postgres plans the join for the number of rows of the first call and keeps that plan: a nested
-- loop that is right for one row would be slow for a thousand.
SET enable_nestloop = off AS $$
DECLARE
  xid bigint := pg_current_xact_id()::text::bigint;
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO jobapi_events (
      workspace_id, xid, at, kind, job_id, job_type, from_status, to_status, attempt, actor, worker,
      data
    )
      SELECT
        workspace_id, xid, statement_timestamp(), 0, job_id, job_type, NULL, status, NULL,
        changed_by, NULL, NULL
      FROM new_jobs;
  ELSE
    INSERT INTO jobapi_events (
      workspace_id, xid, at, kind, job_id, job_type, from_status, to_status, attempt, actor, worker,
      data
    )
      SELECT
        n.workspace_id, xid, statement_timestamp(), kind, n.job_id, n.job_type, o.status, n.status,
        n.attempt, n.changed_by,
        CASE WHEN 1 IN (o.status, n.status) THEN n.worker END,
        CASE
          WHEN edited <> '' THEN CASE kind
            WHEN 5 THEN json_build_object('error', substr(n.error, 1, 1000), 'fields', edited)
            WHEN 8 THEN json_build_object(
              'reason', CASE json_typeof(n.result -> 'cancelled_reason')
                WHEN 'string' THEN substr(n.result ->> 'cancelled_reason', 1, 1000)
              END,
              'fields', edited
            )
            ELSE json_build_object('fields', edited)
          END
          WHEN kind = 3 THEN json_build_object(
            'progress_percent', n.progress_percent, 'progress_message', n.progress_message
          )
          WHEN kind IN (5, 7, 12) OR (kind = 6 AND o.status = 1)
            THEN json_build_object('error', substr(n.error, 1, 1000))
          WHEN kind = 6 THEN json_build_object(
            'reason', CASE json_typeof(n.result -> 'retry_reason')
              WHEN 'string' THEN substr(n.result ->> 'retry_reason', 1, 1000)
            END
          )
          WHEN kind = 8 THEN json_build_object(
            'reason', CASE json_typeof(n.result -> 'cancelled_reason')
              WHEN 'string' THEN substr(n.result ->> 'cancelled_reason', 1, 1000)
            END
          )
        END
      FROM new_jobs n JOIN old_jobs o ON o.id = n.id
      CROSS JOIN LATERAL (
        SELECT n.version <> o.version AND n.last_event_version = n.version AS is_current
      ) AS said
      CROSS JOIN LATERAL (
        SELECT CASE
          WHEN is_current THEN coalesce(n.last_edited, '')
          WHEN o.status = 0 AND n.version <> o.version AND n.lease_token IS NULL THEN trim(
            CASE WHEN n.priority IS DISTINCT FROM o.priority
              THEN 'priority ' ELSE '' END
            || CASE WHEN n.scheduled_at IS DISTINCT FROM o.scheduled_at
              THEN 'scheduled_at ' ELSE '' END
            || CASE WHEN n.estimated_duration IS DISTINCT FROM o.estimated_duration
              THEN 'estimated_duration ' ELSE '' END
            || CASE WHEN n.max_retries IS DISTINCT FROM o.max_retries
              THEN 'max_retries ' ELSE '' END
            || CASE WHEN n.timeout_seconds IS DISTINCT FROM o.timeout_seconds
              THEN 'timeout_seconds ' ELSE '' END
            || CASE WHEN n.metadata::text IS DISTINCT FROM o.metadata::text
              THEN 'metadata ' ELSE '' END
          )
          ELSE ''
        END AS edited
      ) AS edits
      CROSS JOIN LATERAL (
        SELECT CASE
          WHEN is_current THEN n.last_event
          WHEN o.status = n.status THEN CASE
            WHEN n.status = 1
              AND coalesce(n.progress_percent, 0) / 10 <> coalesce(o.progress_percent, 0) / 10
              THEN 3
            WHEN edited <> '' THEN 9
          END
          WHEN n.status = 1 THEN CASE WHEN n.lease_token IS NULL THEN 1 ELSE 2 END
          WHEN n.status = 2 THEN 4
          WHEN n.status = 4 THEN 8
          WHEN n.changed_by IS NULL AND n.error = 'lease expired' THEN 7
          WHEN n.changed_by IS NULL AND n.error = 'timed out' THEN 12
          WHEN n.status = 3 THEN 5
          WHEN n.retry_count > o.retry_count THEN 6
          ELSE 10
        END AS kind
      ) AS noted
      WHERE kind IS NOT NULL;
  END IF;
  RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER jobapi_note_inserted AFTER INSERT ON jobapi_jobs
  REFERENCING NEW TABLE AS new_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_note_jobs();
CREATE OR REPLACE TRIGGER jobapi_note_updated AFTER UPDATE ON jobapi_jobs
  REFERENCING OLD TABLE AS old_jobs NEW TABLE AS new_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_note_jobs();
