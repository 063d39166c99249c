-- Keeps the number of jobs by workspace, status, type and priority in jobapi_job_counts.
--
-- SQLite has one writer at a time, so the triggers change the totals themselves.

DROP TRIGGER IF EXISTS jobapi_count_inserted;
CREATE TRIGGER jobapi_count_inserted
  AFTER INSERT ON jobapi_jobs
BEGIN
  INSERT INTO jobapi_job_counts (workspace_id, status, job_type, priority, n)
    VALUES (NEW.workspace_id, NEW.status, NEW.job_type, NEW.priority, 1)
    ON CONFLICT (workspace_id, status, job_type, priority) DO UPDATE SET n = n + 1;
END;

DROP TRIGGER IF EXISTS jobapi_count_deleted;
CREATE TRIGGER jobapi_count_deleted
  AFTER DELETE ON jobapi_jobs
BEGIN
  INSERT INTO jobapi_job_counts (workspace_id, status, job_type, priority, n)
    VALUES (OLD.workspace_id, OLD.status, OLD.job_type, OLD.priority, -1)
    ON CONFLICT (workspace_id, status, job_type, priority) DO UPDATE SET n = n + -1;
END;

DROP TRIGGER IF EXISTS jobapi_count_updated;
CREATE TRIGGER jobapi_count_updated
  AFTER UPDATE OF workspace_id, status, job_type, priority ON jobapi_jobs
BEGIN
  INSERT INTO jobapi_job_counts (workspace_id, status, job_type, priority, n)
    VALUES (OLD.workspace_id, OLD.status, OLD.job_type, OLD.priority, -1)
    ON CONFLICT (workspace_id, status, job_type, priority) DO UPDATE SET n = n + -1;
  INSERT INTO jobapi_job_counts (workspace_id, status, job_type, priority, n)
    VALUES (NEW.workspace_id, NEW.status, NEW.job_type, NEW.priority, 1)
    ON CONFLICT (workspace_id, status, job_type, priority) DO UPDATE SET n = n + 1;
END;
