-- A role and a database for each program, as infra/postgres.py makes them for the local stack. The official image runs
-- this once, when the cluster is new. Passwords come from files; psql reads them, so they are on no command line.
\set ON_ERROR_STOP on
\set headrace `cat /run/secrets/postgres-headrace`
\set prefect `cat /run/secrets/postgres-prefect`
\set mlflow `cat /run/secrets/postgres-mlflow`
\set phoenix `cat /run/secrets/postgres-phoenix`
\set reader `cat /run/secrets/postgres-headrace_reader`

SET log_statement = 'none';
SET log_min_error_statement = 'panic';
CREATE ROLE headrace LOGIN NOCREATEROLE PASSWORD :'headrace';
CREATE ROLE prefect LOGIN PASSWORD :'prefect';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE ROLE phoenix LOGIN PASSWORD :'phoenix';
CREATE ROLE headrace_reader LOGIN PASSWORD :'reader';
CREATE DATABASE headrace OWNER headrace;
CREATE DATABASE prefect OWNER prefect;
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE phoenix OWNER phoenix;
REVOKE CONNECT ON DATABASE headrace, prefect, mlflow, phoenix FROM PUBLIC;

\connect prefect
CREATE EXTENSION IF NOT EXISTS pg_trgm;
