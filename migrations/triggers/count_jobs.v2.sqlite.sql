-- Keeps the number of jobs by workspace, status, type and priority in jobapi_job_counts, and
-- in jobapi_job_flow how many jobs entered each status in each span of 10, 60 and 600 seconds.
--
-- `n` is how many jobs entered the status, and `net` is n minus how many left it. `seconds` is
-- how long jobs that started had waited, and how long jobs that succeeded or failed had run
-- (julianday is in days of 86400 seconds).
--
-- SQLite has one writer at a time, so the triggers change the totals themselves.
--
-- JobStatus: 1 = running, 2 = success, 3 = failed

DROP TRIGGER IF EXISTS jobapi_count_deleted;
CREATE TRIGGER jobapi_count_deleted
  AFTER DELETE ON jobapi_jobs
BEGIN
  INSERT INTO jobapi_job_counts (workspace_id, status, job_type, priority, n)
    VALUES (OLD.workspace_id, OLD.status, OLD.job_type, OLD.priority, -1)
    ON CONFLICT (workspace_id, status, job_type, priority) DO UPDATE SET n = n + -1;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      OLD.workspace_id, 10,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 10 * 10, 'unixepoch'),
      OLD.status, OLD.job_type, 0, -1,
      0
    WHERE 1
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      OLD.workspace_id, 60,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 60 * 60, 'unixepoch'),
      OLD.status, OLD.job_type, 0, -1,
      0
    WHERE 1
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      OLD.workspace_id, 600,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 600 * 600, 'unixepoch'),
      OLD.status, OLD.job_type, 0, -1,
      0
    WHERE 1
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
END;

DROP TRIGGER IF EXISTS jobapi_count_inserted;
CREATE TRIGGER jobapi_count_inserted
  AFTER INSERT ON jobapi_jobs
BEGIN
  INSERT INTO jobapi_job_counts (workspace_id, status, job_type, priority, n)
    VALUES (NEW.workspace_id, NEW.status, NEW.job_type, NEW.priority, 1)
    ON CONFLICT (workspace_id, status, job_type, priority) DO UPDATE SET n = n + 1;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      NEW.workspace_id, 10,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 10 * 10, 'unixepoch'),
      NEW.status, NEW.job_type, 1, 1,
      86400 * CASE NEW.status
        WHEN 1 THEN (julianday(NEW.started_at) - julianday(NEW.due_at))
        WHEN 2 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        WHEN 3 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        ELSE 0
      END
    WHERE 1
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      NEW.workspace_id, 60,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 60 * 60, 'unixepoch'),
      NEW.status, NEW.job_type, 1, 1,
      86400 * CASE NEW.status
        WHEN 1 THEN (julianday(NEW.started_at) - julianday(NEW.due_at))
        WHEN 2 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        WHEN 3 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        ELSE 0
      END
    WHERE 1
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      NEW.workspace_id, 600,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 600 * 600, 'unixepoch'),
      NEW.status, NEW.job_type, 1, 1,
      86400 * CASE NEW.status
        WHEN 1 THEN (julianday(NEW.started_at) - julianday(NEW.due_at))
        WHEN 2 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        WHEN 3 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        ELSE 0
      END
    WHERE 1
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
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
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      NEW.workspace_id, 10,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 10 * 10, 'unixepoch'),
      NEW.status, NEW.job_type, 1, 1,
      86400 * CASE NEW.status
        WHEN 1 THEN (julianday(NEW.started_at) - julianday(NEW.due_at))
        WHEN 2 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        WHEN 3 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        ELSE 0
      END
    WHERE NEW.status <> OLD.status
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      NEW.workspace_id, 60,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 60 * 60, 'unixepoch'),
      NEW.status, NEW.job_type, 1, 1,
      86400 * CASE NEW.status
        WHEN 1 THEN (julianday(NEW.started_at) - julianday(NEW.due_at))
        WHEN 2 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        WHEN 3 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        ELSE 0
      END
    WHERE NEW.status <> OLD.status
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      NEW.workspace_id, 600,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 600 * 600, 'unixepoch'),
      NEW.status, NEW.job_type, 1, 1,
      86400 * CASE NEW.status
        WHEN 1 THEN (julianday(NEW.started_at) - julianday(NEW.due_at))
        WHEN 2 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        WHEN 3 THEN (julianday(NEW.completed_at) - julianday(NEW.started_at))
        ELSE 0
      END
    WHERE NEW.status <> OLD.status
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      OLD.workspace_id, 10,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 10 * 10, 'unixepoch'),
      OLD.status, OLD.job_type, 0, -1,
      0
    WHERE NEW.status <> OLD.status
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      OLD.workspace_id, 60,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 60 * 60, 'unixepoch'),
      OLD.status, OLD.job_type, 0, -1,
      0
    WHERE NEW.status <> OLD.status
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
  INSERT INTO jobapi_job_flow (workspace_id, span, at, status, job_type, n, net, seconds)
    SELECT
      OLD.workspace_id, 600,
      strftime('%Y-%m-%d %H:%M:%S.000000',
        CAST(strftime('%s', 'now') AS INTEGER) / 600 * 600, 'unixepoch'),
      OLD.status, OLD.job_type, 0, -1,
      0
    WHERE NEW.status <> OLD.status
    ON CONFLICT (workspace_id, span, at, status, job_type) DO UPDATE SET
      n = n + excluded.n, net = net + excluded.net, seconds = seconds + excluded.seconds;
END;
