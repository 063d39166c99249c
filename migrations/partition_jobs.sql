-- Makes jobapi_jobs again as a table that is partitioned by workspace, and copies its rows.
-- `jobapi db partition` runs it, with a number in place of the partitions.
--
-- Postgres wants the partition key in every unique constraint. It comes last: statements that find
-- a job by its id alone would otherwise read a whole index of each partition. A foreign key cannot
-- refer to `id` alone any more, so a trigger deletes the attempts of deleted jobs.

DO $$
DECLARE
  indexes text[] := (SELECT array_agg(indexdef) FROM pg_indexes
    WHERE tablename = 'jobapi_jobs' AND schemaname = current_schema()
      AND indexname NOT IN ('pk_jobapi_jobs', 'uq_jobapi_jobs_job_id'));
  triggers text[] := (SELECT array_agg(pg_get_triggerdef(oid)) FROM pg_trigger
    WHERE tgrelid = 'jobapi_jobs'::regclass AND NOT tgisinternal);
  settings text := (SELECT array_to_string(reloptions, ', ') FROM pg_class
    WHERE oid = 'jobapi_jobs'::regclass);
  statement text;
BEGIN
  ALTER TABLE jobapi_attempts DROP CONSTRAINT fk_jobapi_attempts_job;
  ALTER TABLE jobapi_jobs RENAME TO jobapi_jobs_before;
  CREATE TABLE jobapi_jobs (LIKE jobapi_jobs_before INCLUDING ALL EXCLUDING INDEXES)
    PARTITION BY HASH (workspace_id);
  FOR n IN 0..{partitions} - 1 LOOP
    EXECUTE format('CREATE TABLE jobapi_jobs_%s PARTITION OF jobapi_jobs'
      ' FOR VALUES WITH (MODULUS {partitions}, REMAINDER %s) WITH (%s)', n, n, settings);
  END LOOP;
  INSERT INTO jobapi_jobs SELECT * FROM jobapi_jobs_before;
  PERFORM setval(pg_get_serial_sequence('jobapi_jobs', 'id'),
    (SELECT coalesce(max(id), 0) + 1 FROM jobapi_jobs), false);
  DROP TABLE jobapi_jobs_before;
  ALTER TABLE jobapi_jobs
    ADD CONSTRAINT pk_jobapi_jobs PRIMARY KEY (id, workspace_id),
    ADD CONSTRAINT uq_jobapi_jobs_job_id UNIQUE (job_id, workspace_id),
    ADD CONSTRAINT fk_jobapi_jobs_workspace_id FOREIGN KEY (workspace_id)
      REFERENCES jobapi_workspaces (id) ON DELETE CASCADE,
    ADD CONSTRAINT fk_jobapi_jobs_created_by FOREIGN KEY (created_by) REFERENCES jobapi_users (id);
  FOREACH statement IN ARRAY indexes || triggers LOOP
    EXECUTE statement;
  END LOOP;
  CREATE FUNCTION jobapi_delete_attempts() RETURNS trigger LANGUAGE plpgsql AS $delete$
  BEGIN
    DELETE FROM jobapi_attempts USING old_jobs WHERE job = old_jobs.id;
    RETURN NULL;
  END $delete$;
  CREATE TRIGGER jobapi_delete_attempts AFTER DELETE ON jobapi_jobs
    REFERENCING OLD TABLE AS old_jobs FOR EACH STATEMENT EXECUTE FUNCTION jobapi_delete_attempts();
END $$;
