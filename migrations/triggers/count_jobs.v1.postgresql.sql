-- Records how many jobs each statement adds to, or removes from, the counts of jobs by
-- workspace, status, type and priority.
--
-- Only inserts rows into jobapi_job_count_changes, so that writers do not wait for each other.
-- The maintenance adds these rows to jobapi_job_counts and deletes them. TRUNCATE empties
-- both.

CREATE OR REPLACE FUNCTION jobapi_count_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO jobapi_job_count_changes (workspace_id, status, job_type, priority, n)
      SELECT workspace_id, status, job_type, priority, count(*)
      FROM new_jobs
      GROUP BY workspace_id, status, job_type, priority;
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO jobapi_job_count_changes (workspace_id, status, job_type, priority, n)
      SELECT workspace_id, status, job_type, priority, -count(*)
      FROM old_jobs
      GROUP BY workspace_id, status, job_type, priority;
  ELSIF TG_OP = 'UPDATE' THEN
    INSERT INTO jobapi_job_count_changes (workspace_id, status, job_type, priority, n)
      SELECT workspace_id, status, job_type, priority, sum(n)
      FROM (
        SELECT workspace_id, status, job_type, priority, 1 AS n FROM new_jobs
        UNION ALL
        SELECT workspace_id, status, job_type, priority, -1 FROM old_jobs
      ) AS changed
      GROUP BY workspace_id, status, job_type, priority
      HAVING sum(n) <> 0;
  ELSE
    DELETE FROM jobapi_job_counts;
    DELETE FROM jobapi_job_count_changes;
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
