-- Records how many jobs each statement adds to, or removes from, the counts of jobs by
-- workspace, status, type and priority, and when.
--
-- `seconds` is how long jobs that start have waited, and how long jobs that succeed or fail
-- have run. A job that leaves a status takes its seconds with it. A job that started before it
-- was due has waited for 0 seconds.
--
-- A change of priority alone has no time (`at` is null): the job did not enter a status.
--
-- Only inserts rows into jobapi_job_count_changes, so that writers do not wait for each other.
-- The maintenance adds these rows to jobapi_job_counts and jobapi_job_flow and deletes them.
-- TRUNCATE empties all three.
--
-- JobStatus: 1 = running, 2 = success, 3 = failed

CREATE OR REPLACE FUNCTION jobapi_count_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO jobapi_job_count_changes (workspace_id, status, job_type, priority, n, at, seconds)
      SELECT workspace_id, status, job_type, priority, count(*), statement_timestamp(), 0
      FROM new_jobs
      GROUP BY workspace_id, status, job_type, priority;
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO jobapi_job_count_changes (workspace_id, status, job_type, priority, n, at, seconds)
      SELECT workspace_id, status, job_type, priority, -count(*), statement_timestamp(), 0
      FROM old_jobs
      GROUP BY workspace_id, status, job_type, priority;
  ELSIF TG_OP = 'UPDATE' THEN
    INSERT INTO jobapi_job_count_changes (workspace_id, status, job_type, priority, n, at, seconds)
      SELECT workspace_id, status, job_type, priority, sum(n),
        CASE
          WHEN sum(sum(n)) OVER (PARTITION BY workspace_id, status, job_type) = 0 THEN NULL
          ELSE statement_timestamp()
        END,
        sum(seconds)
      FROM (
        SELECT workspace_id, status, job_type, priority, 1 AS n,
          greatest(CASE status
            WHEN 1 THEN extract(epoch FROM started_at - due_at)
            WHEN 2 THEN extract(epoch FROM completed_at - started_at)
            WHEN 3 THEN extract(epoch FROM completed_at - started_at)
            ELSE 0
          END, 0)::float8 AS seconds
        FROM new_jobs
        UNION ALL
        SELECT workspace_id, status, job_type, priority, -1,
          -greatest(CASE status
            WHEN 1 THEN extract(epoch FROM started_at - due_at)
            WHEN 2 THEN extract(epoch FROM completed_at - started_at)
            WHEN 3 THEN extract(epoch FROM completed_at - started_at)
            ELSE 0
          END, 0)::float8
        FROM old_jobs
      ) AS changed
      GROUP BY workspace_id, status, job_type, priority
      HAVING sum(n) <> 0;
  ELSE
    DELETE FROM jobapi_job_counts;
    DELETE FROM jobapi_job_count_changes;
    DELETE FROM jobapi_job_flow;
  END IF;
  RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER jobapi_count_inserted AFTER INSERT ON jobapi_jobs
  REFERENCING NEW TABLE AS new_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_count_jobs();
CREATE OR REPLACE TRIGGER jobapi_count_deleted AFTER DELETE ON jobapi_jobs
  REFERENCING OLD TABLE AS old_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_count_jobs();
CREATE OR REPLACE TRIGGER jobapi_count_updated AFTER UPDATE ON jobapi_jobs
  REFERENCING OLD TABLE AS old_jobs NEW TABLE AS new_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_count_jobs();
CREATE OR REPLACE TRIGGER jobapi_count_truncated AFTER TRUNCATE ON jobapi_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobapi_count_jobs();
