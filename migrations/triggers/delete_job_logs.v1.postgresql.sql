-- Marks the logs of deleted jobs, which the maintenance deletes in small steps: one job may have
-- thousands of entries.

CREATE OR REPLACE FUNCTION jobapi_delete_job_logs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE jobapi_job_log_heads AS head SET deleted = true
  FROM old_jobs WHERE head.workspace_id = old_jobs.workspace_id AND head.job = old_jobs.id;
  RETURN NULL;
END $$;

CREATE TRIGGER jobapi_delete_job_logs AFTER DELETE ON jobapi_jobs
  REFERENCING OLD TABLE AS old_jobs FOR EACH STATEMENT EXECUTE FUNCTION jobapi_delete_job_logs();
