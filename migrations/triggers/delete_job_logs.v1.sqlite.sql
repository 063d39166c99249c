-- Marks the log of a deleted job, which the maintenance deletes in small steps: it may have
-- thousands of entries.

CREATE TRIGGER jobapi_delete_job_logs AFTER DELETE ON jobapi_jobs BEGIN
  UPDATE jobapi_job_log_heads SET deleted = true
  WHERE workspace_id = OLD.workspace_id AND job = OLD.id;
END;
