-- The event store. Installed by events.schema.install with an administrator's URL; idempotent.
-- Services hold no privilege on any table here: every access goes through the functions below.

CREATE SCHEMA IF NOT EXISTS store;

-- Which login role may append to which stream category (the name before the dash).
CREATE TABLE IF NOT EXISTS store.writers (
    category text COLLATE "C" NOT NULL,
    role     name NOT NULL,
    PRIMARY KEY (category, role)
);

-- One row: which life of the log this is. A restored store gets a new epoch, and every consumer
-- that has seen positions of the old one stops instead of mixing two histories.
CREATE TABLE IF NOT EXISTS store.store (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch    uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO store.store DEFAULT VALUES ON CONFLICT DO NOTHING;
-- The last position of the restored log when it got its epoch: what is before it is common to both lives.
ALTER TABLE store.store ADD COLUMN IF NOT EXISTS restored_end bigint;

-- fillfactor leaves room for HOT updates: the row of a busy stream is rewritten by every append.
CREATE TABLE IF NOT EXISTS store.streams (
    stream  text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL
) WITH (fillfactor = 50);

-- CACHE 1: ids of one stream must rise with its versions whichever session draws them.
CREATE SEQUENCE IF NOT EXISTS store.event_id AS bigint CACHE 1;

CREATE TABLE IF NOT EXISTS store.events (
    id             bigint NOT NULL,
    stream         text COLLATE "C" NOT NULL,
    version        bigint NOT NULL,
    event_id       uuid NOT NULL,
    type           text COLLATE "C" NOT NULL,
    schema_version int NOT NULL,
    subject        uuid,
    data           bytea NOT NULL,
    metadata       bytea NOT NULL,
    recorded_at    timestamptz NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX IF NOT EXISTS events_stream_version ON store.events (stream, version);

CREATE TABLE IF NOT EXISTS store.event_ids (
    event_id     uuid PRIMARY KEY,
    stream       text COLLATE "C" NOT NULL,
    version      bigint NOT NULL,
    request_hash bytea NOT NULL
);

-- Committed events that have no position yet.
CREATE TABLE IF NOT EXISTS store.pending (id bigint PRIMARY KEY);

CREATE TABLE IF NOT EXISTS store.log (
    position   bigint PRIMARY KEY,
    id         bigint NOT NULL UNIQUE,
    chain_hash bytea NOT NULL
);

-- The newest slices of the log as they go over the wire, until they are published: a cache of what `read_cloud_events`
-- makes of the log. A crash of the server empties it, and nothing is lost.
CREATE UNLOGGED TABLE IF NOT EXISTS store.outbox (
    first  bigint PRIMARY KEY,
    last   bigint NOT NULL,
    events bytea NOT NULL
);
ALTER TABLE store.outbox ALTER COLUMN events SET STORAGE EXTERNAL; -- compressing takes longer than making it

-- States of long streams, for cold starts: a cache (events.snapshots).
CREATE TABLE IF NOT EXISTS store.snapshots (
    stream      text COLLATE "C" PRIMARY KEY,
    version     bigint NOT NULL,
    fingerprint bytea NOT NULL,
    state       bytea NOT NULL
);

CREATE TABLE IF NOT EXISTS store.checkpoints (
    publisher text PRIMARY KEY,
    position  bigint NOT NULL
);

-- An appended event's partition must exist before the id is drawn; the relay's leader keeps one
-- partition ahead (ensure_partitions), so a missing one means that no relay has run for 10 M events.
CREATE OR REPLACE FUNCTION store.ensure_partitions() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = store, pg_temp AS $$
DECLARE
    size  CONSTANT bigint := 10000000;
    first bigint := (SELECT last_value FROM event_id) / size;
BEGIN
    FOR n IN first .. first + 1 LOOP
        IF to_regclass(format('store.events_%s', n)) IS NULL THEN
            -- ATTACH locks out neither appends nor a dump; CREATE … PARTITION OF would wait for both, and they for it.
            EXECUTE format('CREATE TABLE store.events_%s (LIKE store.events)', n);
            EXECUTE format('ALTER TABLE store.events ATTACH PARTITION store.events_%s FOR VALUES FROM (%s) TO (%s)',
                           n, n * size, (n + 1) * size);
        END IF;
    END LOOP;
END $$;
SELECT store.ensure_partitions();

-- ---------------------------------------------------------------------------------------------
-- Append: one door. A batch of requests, each on one or several streams, in one transaction.
-- ---------------------------------------------------------------------------------------------

-- Writes events whose streams are locked and whose versions are decided.
-- Ids are drawn here, after the lock: version n+1 visible implies n visible with a lower id.
CREATE OR REPLACE FUNCTION store.insert_events(
    _stream text[], _version bigint[], _event_id uuid[], _request_hash bytea[], _type text[],
    _schema_version int[], _subject uuid[], _data bytea[], _metadata bytea[]
) RETURNS void LANGUAGE plpgsql SET search_path = store, pg_temp AS $$
BEGIN
    WITH inserted AS (
        INSERT INTO events (id, stream, version, event_id, type, schema_version, subject, data, metadata, recorded_at)
        SELECT nextval('store.event_id'), e.stream, e.version, e.event_id, e.type, e.schema_version,
               e.subject, e.data, e.metadata, clock_timestamp()
        FROM unnest(_stream, _version, _event_id, _type, _schema_version, _subject, _data, _metadata)
          AS e(stream, version, event_id, type, schema_version, subject, data, metadata)
        RETURNING id)
    INSERT INTO pending (id) SELECT id FROM inserted;

    INSERT INTO event_ids (event_id, stream, version, request_hash)
    SELECT * FROM unnest(_event_id, _stream, _version, _request_hash);
END $$;
REVOKE ALL ON FUNCTION store.insert_events FROM PUBLIC;

-- One event on one stream: what a lone writer waits for, in as few statements as it can be.
-- Returns the stream's version after it; NULL, and nothing is written, where that is not the whole story: the id is
-- taken or the version is not the expected one. Then `append` finds the verdict.
CREATE OR REPLACE FUNCTION store.append_one(
    _stream text, _expected bigint, _event_id uuid, _request_hash bytea,
    _type text, _schema_version int, _subject uuid, _data bytea, _metadata bytea
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = store, pg_temp AS $$
DECLARE
    after bigint;
    _id   bigint;
BEGIN
    PERFORM FROM writers w WHERE w.category = split_part(_stream, '-', 1) AND w.role = session_user;
    IF NOT FOUND THEN
        RAISE insufficient_privilege USING MESSAGE = format('role %s may not append to %s', session_user, _stream);
    END IF;
    INSERT INTO streams AS s (stream, version) VALUES (_stream, 1)
    ON CONFLICT (stream) DO UPDATE SET version = s.version + 1 WHERE _expected IS NULL OR s.version = _expected
    RETURNING s.version INTO after;
    IF after IS NULL THEN
        RETURN NULL;
    END IF;
    IF after = _expected + 1 OR _expected IS NULL THEN
        INSERT INTO event_ids (event_id, stream, version, request_hash)
        VALUES (_event_id, _stream, after, _request_hash) ON CONFLICT DO NOTHING;
        IF FOUND THEN
            _id := nextval('store.event_id');
            INSERT INTO events (id, stream, version, event_id, type, schema_version, subject, data, metadata, recorded_at)
            VALUES (_id, _stream, after, _event_id, _type, _schema_version, _subject, _data, _metadata,
                    clock_timestamp());
            INSERT INTO pending (id) VALUES (_id);
            RETURN after;
        END IF;
    END IF;
    -- Nobody has seen the row as it is now: it goes back to what it was.
    IF after = 1 THEN
        DELETE FROM streams WHERE stream = _stream;
    ELSE
        UPDATE streams SET version = after - 1 WHERE stream = _stream;
    END IF;
    RETURN NULL;
END $$;

-- Verdicts per request: 'appended', 'duplicate' (same id and hash were appended before),
-- 'reused' (same id, other hash), 'conflict' (a stream is not at the expected version).
-- Versions per part (request × stream): appended → the stream's version after the part;
-- duplicate → of the request's first event, in its first part; conflict → the stream's actual version.
-- Requests are settled in order: a later one sees the versions an earlier one has made. A chained one was decided on
-- the events of the ones before it in the batch: where one of these is not appended, it conflicts, even if another's
-- events have brought the stream to the expected version.
DROP FUNCTION IF EXISTS store.append(
    text[], bigint[], uuid[], bytea[], int[], int[], bigint[], bigint[], int[], int[], bigint[], uuid[], text[], int[],
    uuid[], bytea[], bytea[]);
CREATE OR REPLACE FUNCTION store.append(
    _streams text[],               -- distinct, sorted by byte order: the lock order
    _growth bigint[],              -- how many events the batch holds for each of them
    _request_id uuid[],            -- per request: the id of its first event
    _request_hash bytea[],
    _part_request int[],           -- per part, in request order (1-based)
    _part_stream int[],            -- index into _streams
    _part_expected bigint[],       -- NULL: any version
    _part_offset bigint[],         -- events of this batch before this part on the same stream
    _part_count int[],
    _event_part int[],             -- per event, in order of parts
    _event_offset bigint[],        -- its number within the batch on its stream, from 1
    _event_id uuid[], _type text[], _schema_version int[], _subject uuid[], _data bytea[], _metadata bytea[],
    _request_chained boolean[] DEFAULT NULL,
    OUT verdicts text[], OUT versions bigint[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = store, pg_temp
-- Plans are cached per session, and one made while the tables are small would scan them for ever after.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    base     bigint[];
    start    bigint[];
    current  bigint;
    known    record;
    verdict  text;
    p        int := 1;
    last_p   int;
    e        int := 1;
    last_e   int;
    e_stream text[];
    e_version bigint[];
BEGIN
    IF EXISTS (SELECT FROM (SELECT DISTINCT split_part(s, '-', 1) AS category FROM unnest(_streams) s) named
               WHERE NOT EXISTS (SELECT FROM writers w WHERE w.category = named.category AND w.role = session_user)) THEN
        RAISE insufficient_privilege USING MESSAGE =
            format('role %s may not append to every one of these streams: %s', session_user, _streams);
    END IF;

    -- The common case: every request is new, named once, and at its expected version. Creates, locks and moves the
    -- streams in one pass; the order of locking is the same in every transaction. Where it is not the common case,
    -- leaving the block undoes all of it.
    BEGIN
        WITH grown AS (
            INSERT INTO streams AS s (stream, version) SELECT * FROM unnest(_streams, _growth)
            ON CONFLICT (stream) DO UPDATE SET version = s.version + excluded.version
            RETURNING s.stream, s.version)
        SELECT array_agg(version ORDER BY stream) INTO base FROM grown;
        SELECT array_agg(after - growth ORDER BY n) INTO base
          FROM unnest(base, _growth) WITH ORDINALITY AS g(after, growth, n);
        IF EXISTS (SELECT FROM unnest(_part_stream, _part_expected, _part_offset) AS part(stream, expected, before)
                   WHERE expected <> base[stream] + before) THEN
            RAISE SQLSTATE 'SG001';
        END IF;
        SELECT array_agg(_streams[_part_stream[part]] ORDER BY n),
               array_agg(base[_part_stream[part]] + before ORDER BY n)
          INTO e_stream, e_version
          FROM unnest(_event_part, _event_offset) WITH ORDINALITY AS event(part, before, n);
        -- Raises unique_violation where an event id is taken, or named twice in this batch.
        PERFORM insert_events(e_stream, e_version, _event_id,
                              (SELECT array_agg(_request_hash[_part_request[part]] ORDER BY n)
                               FROM unnest(_event_part) WITH ORDINALITY AS event(part, n)),
                              _type, _schema_version, _subject, _data, _metadata);
        verdicts := array_fill('appended'::text, ARRAY[cardinality(_request_id)]);
        SELECT array_agg(base[stream] + before + added ORDER BY n) INTO versions
          FROM unnest(_part_stream, _part_offset, _part_count) WITH ORDINALITY AS part(stream, before, added, n);
        RETURN;
    EXCEPTION WHEN unique_violation OR SQLSTATE 'SG001' THEN
        NULL;
    END;

    INSERT INTO streams AS s (stream, version) SELECT u, 0 FROM unnest(_streams) u
    ON CONFLICT (stream) DO UPDATE SET version = s.version WHERE false;
    SELECT array_agg(version ORDER BY stream) INTO base FROM streams WHERE stream = ANY (_streams);

    -- Otherwise each request is settled by itself, in order.
    start := base;
    FOR r IN 1 .. cardinality(_request_id) LOOP
        last_p := p;
        WHILE last_p < cardinality(_part_request) AND _part_request[last_p + 1] = r LOOP
            last_p := last_p + 1;
        END LOOP;
        last_e := e - 1 + (SELECT sum(c) FROM unnest(_part_count[p:last_p]) c);

        SELECT version, request_hash INTO known FROM event_ids WHERE event_id = _request_id[r];
        IF FOUND THEN
            verdict := CASE WHEN known.request_hash = _request_hash[r] THEN 'duplicate' ELSE 'reused' END;
            versions := versions || known.version || array_fill(NULL::bigint, ARRAY[last_p - p]);
        ELSE
            verdict := 'appended';
            FOR i IN p .. last_p LOOP
                IF _part_expected[i] <> base[_part_stream[i]]
                   OR (_request_chained[r] AND base[_part_stream[i]] <> start[_part_stream[i]] + _part_offset[i]) THEN
                    verdict := 'conflict';
                END IF;
            END LOOP;
            e_stream := '{}';
            e_version := '{}';
            FOR i IN p .. last_p LOOP
                current := base[_part_stream[i]];
                IF verdict = 'appended' THEN
                    e_stream := e_stream || array_fill(_streams[_part_stream[i]], ARRAY[_part_count[i]]);
                    e_version := e_version || ARRAY(SELECT generate_series(current + 1, current + _part_count[i]));
                    current := current + _part_count[i];
                    base[_part_stream[i]] := current;
                    UPDATE streams SET version = current WHERE stream = _streams[_part_stream[i]];
                END IF;
                versions := versions || current;
            END LOOP;
            IF verdict = 'appended' THEN
                PERFORM insert_events(e_stream, e_version, _event_id[e:last_e],
                                      array_fill(_request_hash[r], ARRAY[last_e - e + 1]), _type[e:last_e],
                                      _schema_version[e:last_e], _subject[e:last_e], _data[e:last_e], _metadata[e:last_e]);
            END IF;
        END IF;
        verdicts := verdicts || verdict;
        p := last_p + 1;
        e := last_e + 1;
    END LOOP;
    -- A stream that only refused requests named does not exist.
    DELETE FROM streams WHERE stream = ANY (_streams) AND version = 0;
END $$;

-- ---------------------------------------------------------------------------------------------
-- Sequence: committed events get a dense global position, in id order, in one statement.
-- ---------------------------------------------------------------------------------------------

-- What the hash chain covers, named once: the position, then every column of the event, exact bytes.
-- Whatever has no fixed length is preceded by it, so that no two rows have the same encoding.
-- STABLE, as `convert_to` is: what claims more than its body is called for each row, and not put in its place.
CREATE OR REPLACE FUNCTION store.event_bytes(
    _position bigint, _id bigint, _stream text, _version bigint, _event_id uuid, _type text, _schema_version int,
    _subject uuid, _data bytea, _metadata bytea, _recorded_at timestamptz
) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT int8send(_position) || int8send(_id)
        || int4send(octet_length(_stream)) || convert_to(_stream, 'UTF8') || int8send(_version) || uuid_send(_event_id)
        || int4send(octet_length(_type)) || convert_to(_type, 'UTF8') || int4send(_schema_version)
        || CASE WHEN _subject IS NULL THEN int4send(0) ELSE int4send(16) || uuid_send(_subject) END
        || int4send(octet_length(_data)) || _data || int4send(octet_length(_metadata)) || _metadata
        || timestamptz_send(_recorded_at)
$$;

CREATE OR REPLACE FUNCTION store.chain_step(_state bytea, _event bytea, _head bytea) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN RETURN sha256(coalesce(_state, _head) || _event); END $$;
DO $$ BEGIN
    CREATE AGGREGATE store.chain(_event bytea, _head bytea) (SFUNC = store.chain_step, STYPE = bytea);
EXCEPTION WHEN duplicate_function THEN NULL;
END $$;

-- The hash before the first event: of the words, so that an empty log has a head too.
CREATE OR REPLACE FUNCTION store.genesis() RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT sha256('sangam event log'::bytea) $$;

-- An event as it goes over the wire: CloudEvents 1.0, JSON format (events.envelope.CloudEvent). Made here because the
-- relay and whoever reads the log then pass bytes on: a tenth of the time that ten columns take. The payload is copied
-- as it is. Of the metadata, which are JSON of our own making, two names have an underscore that CloudEvents does not
-- allow; inside a value their quotes would be escaped, so only names match.
CREATE OR REPLACE FUNCTION store.cloud_event(
    _position bigint, _stream text, _version bigint, _event_id uuid, _type text, _schema_version int, _subject uuid,
    _data bytea, _metadata bytea, _recorded_at timestamptz
) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT convert_to(
        '{"specversion":"1.0","datacontenttype":"application/json","id":"' || _event_id
        || '","source":' || to_json('/sangam/' || split_part(_type, '.', 1)) || ',"type":' || to_json(_type)
        || ',"time":"' || to_char(_recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '"'
        || CASE WHEN _subject IS NULL THEN '' ELSE ',"subject":"' || _subject || '"' END
        || ',"stream":' || to_json(_stream) || ',"version":' || _version || ',"position":' || _position
        || ',"schemaversion":' || _schema_version
        || CASE WHEN octet_length(_metadata) <= 2 THEN ''
                ELSE ',' || rtrim(substr(replace(replace(convert_from(_metadata, 'UTF8'),
                                                         '"correlation_id":', '"correlationid":'),
                                                 '"causation_id":', '"causationid":'), 2), '}') END
        || ',"data":', 'UTF8') || _data || '}'::bytea
$$;

-- Positions for up to _limit events that the statement's snapshot sees: those with an id above
-- _after, and the _gaps below it that had not committed before. Whoever calls must hold the
-- sequencer's advisory lock on this very session. They come as `read_cloud_events` gives them, with their ids.
DROP FUNCTION IF EXISTS store.sequence(bigint, bigint[], int);
CREATE FUNCTION store.sequence(_after bigint, _gaps bigint[], _limit int)
RETURNS TABLE (ids bigint[], first bigint, last bigint, events bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = store, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY
    WITH head AS MATERIALIZED (
        SELECT coalesce(max(l.position), 0) AS position,
               coalesce((SELECT chain_hash FROM log ORDER BY log.position DESC LIMIT 1), genesis()) AS chain_hash
        FROM (SELECT log.position FROM log ORDER BY log.position DESC LIMIT 1) l),
    ready AS MATERIALIZED (
        -- By an array: joined, a table that statistics take for empty is walked over from end to end.
        DELETE FROM pending WHERE pending.id = ANY (ARRAY(
            (SELECT p.id FROM pending p WHERE p.id > _after ORDER BY p.id LIMIT _limit)
            UNION ALL
            (SELECT p.id FROM pending p WHERE p.id = ANY (_gaps) AND p.id <= _after)))
        RETURNING pending.id),
    numbered AS MATERIALIZED (
        SELECT e.*, row_number() OVER (ORDER BY e.id) - 1 AS n, head.position + row_number() OVER (ORDER BY e.id) AS position,
               head.chain_hash AS head_hash
        FROM ready JOIN events e ON e.id = ready.id CROSS JOIN head),
    logged AS (
        INSERT INTO log (position, id, chain_hash)
        SELECT n.position, n.id,
               chain(event_bytes(n.position, n.id, n.stream, n.version, n.event_id, n.type, n.schema_version, n.subject,
                                 n.data, n.metadata, n.recorded_at), n.head_hash) OVER (ORDER BY n.position)
        FROM numbered n),
    sliced AS MATERIALIZED (
        SELECT array_agg(n.id) AS ids, min(n.position) AS first, max(n.position) AS last,
               string_agg(cloud_event(n.position, n.stream, n.version, n.event_id, n.type, n.schema_version, n.subject,
                                      n.data, n.metadata, n.recorded_at), ',' ORDER BY n.position) AS events
        FROM numbered n GROUP BY n.n / 256),
    kept AS (INSERT INTO outbox SELECT s.first, s.last, s.events FROM sliced s)
    SELECT s.ids, s.first, s.last, s.events FROM sliced s ORDER BY s.first;
END $$;

CREATE OR REPLACE FUNCTION store.last_event_id() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = store, pg_temp AS $$ SELECT last_value - (NOT is_called)::int FROM event_id $$;

-- What every publisher has published leaves the outbox. Where it has been looked through before is not looked at again:
-- under an old snapshot what was deleted stays, and would be read each time.
CREATE OR REPLACE FUNCTION store.save_checkpoint(_publisher text, _position bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = store, pg_temp SET enable_seqscan = off AS $$
DECLARE
    before CONSTANT bigint := coalesce((SELECT min(position) FROM checkpoints), 0);
    after  bigint;
BEGIN
    INSERT INTO checkpoints VALUES (_publisher, _position)
    ON CONFLICT (publisher) DO UPDATE SET position = excluded.position;
    after := (SELECT min(position) FROM checkpoints);
    DELETE FROM outbox WHERE first > before - 256 AND first <= after AND last <= after;
END $$;

CREATE OR REPLACE FUNCTION store.read_checkpoint(_publisher text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = store, pg_temp AS $$
    SELECT coalesce((SELECT position FROM checkpoints WHERE publisher = _publisher), 0)
$$;

-- ---------------------------------------------------------------------------------------------
-- Read.
-- ---------------------------------------------------------------------------------------------

-- The events at positions above _after up to _up_to, of these types (NULL: of all). Ids and positions run nearly side
-- by side, so the slice is read as one range of ids and joined in memory. The settings keep it so however large the
-- tables are: a planner that knows no parameter joins them whole.
CREATE OR REPLACE FUNCTION store.read_slice(_after bigint, _up_to bigint, _types text[])
RETURNS TABLE ("position" bigint, stream text, version bigint, event_id uuid, type text, schema_version int, subject uuid,
               data bytea, metadata bytea, recorded_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = store, pg_temp
SET enable_seqscan = off SET enable_nestloop = off SET enable_mergejoin = off AS $$
DECLARE
    lowest  bigint;
    highest bigint;
BEGIN
    -- OFFSET 0: or min() and max() would be looked for along the index of ids, from its ends.
    SELECT min(slice.id), max(slice.id) INTO lowest, highest
      FROM (SELECT log.id FROM log WHERE log.position > _after AND log.position <= _up_to OFFSET 0) slice;
    IF highest - lowest > 4 * (_up_to - _after) + 1000 THEN
        -- Something in it committed very late: its id is far from its neighbours'.
        RETURN QUERY SELECT * FROM read_positions(ARRAY(SELECT generate_series(_after + 1, _up_to))) r
                     WHERE _types IS NULL OR r.type = ANY (_types) ORDER BY r.position;
    ELSE
        RETURN QUERY
            SELECT l.position, e.stream, e.version, e.event_id, e.type, e.schema_version, e.subject, e.data, e.metadata,
                   e.recorded_at
            FROM log l JOIN events e ON e.id = l.id
            WHERE l.position > _after AND l.position <= _up_to AND e.id BETWEEN lowest AND highest
                  AND (_types IS NULL OR e.type = ANY (_types))
            ORDER BY l.position;
    END IF;
END $$;
REVOKE ALL ON FUNCTION store.read_slice FROM PUBLIC;

DROP FUNCTION IF EXISTS store.read_log(bigint, int);
-- The events of some types (NULL: of all) in a range of positions: what one read model needs of the log.
CREATE OR REPLACE FUNCTION store.read_types(_after bigint, _up_to bigint, _types text[])
RETURNS TABLE ("position" bigint, stream text, version bigint, event_id uuid, type text, schema_version int, subject uuid,
               data bytea, metadata bytea, recorded_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = store, pg_temp AS $$
    SELECT * FROM read_slice(_after, least(_up_to, (SELECT max(log.position) FROM log)), _types)
$$;

-- The same as they go over the wire: one row for every _per_row positions that hold any, with its events' JSON, a comma
-- between them. Rows cost the driver and its reader more than the events in them do; and row by row, all of this stays in
-- the processor's cache.
DROP FUNCTION IF EXISTS store.read_cloud_events(bigint, bigint, text[]);
CREATE OR REPLACE FUNCTION store.read_cloud_events(_after bigint, _up_to bigint, _types text[], _per_row int)
RETURNS TABLE (first bigint, last bigint, events bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = store, pg_temp
SET enable_seqscan = off SET enable_nestloop = off SET enable_mergejoin = off AS $$
DECLARE
    head    CONSTANT bigint := least(_up_to, (SELECT max(log.position) FROM log));
    up_to   bigint;
    lowest  bigint;
    highest bigint;
BEGIN
    WHILE _after < head LOOP
        up_to := least(_after + _per_row, head);
        SELECT min(slice.id), max(slice.id) INTO lowest, highest
          FROM (SELECT log.id FROM log WHERE log.position > _after AND log.position <= up_to OFFSET 0) slice;
        IF highest - lowest > 4 * _per_row + 1000 THEN
            SELECT min(r.position), max(r.position),
                   string_agg(cloud_event(r.position, r.stream, r.version, r.event_id, r.type, r.schema_version, r.subject,
                                          r.data, r.metadata, r.recorded_at), ',' ORDER BY r.position)
              INTO first, last, events
              FROM read_positions(ARRAY(SELECT generate_series(_after + 1, up_to))) r
             WHERE _types IS NULL OR r.type = ANY (_types);
        ELSE
            SELECT min(l.position), max(l.position),
                   string_agg(cloud_event(l.position, e.stream, e.version, e.event_id, e.type, e.schema_version, e.subject,
                                          e.data, e.metadata, e.recorded_at), ',' ORDER BY l.position)
              INTO first, last, events
              FROM log l JOIN events e ON e.id = l.id
             WHERE l.position > _after AND l.position <= up_to AND e.id BETWEEN lowest AND highest
                   AND (_types IS NULL OR e.type = ANY (_types));
        END IF;
        IF events IS NOT NULL THEN
            RETURN NEXT;
        END IF;
        _after := up_to;
    END LOOP;
END $$;

-- What a publisher publishes next: from the outbox, or where that has nothing after this very position, from the log up
-- to where the outbox goes on.
CREATE OR REPLACE FUNCTION store.read_unpublished(_after bigint, _up_to bigint)
RETURNS TABLE (first bigint, last bigint, events bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = store, pg_temp
SET enable_seqscan = off AS $$
DECLARE
    next CONSTANT bigint := (SELECT o.first FROM outbox o WHERE o.first > _after ORDER BY o.first LIMIT 1);
BEGIN
    IF next = _after + 1 THEN
        RETURN QUERY SELECT o.first, o.last, o.events FROM outbox o
                     WHERE o.first > _after AND o.first <= _up_to ORDER BY o.first;
    ELSE
        RETURN QUERY SELECT * FROM read_cloud_events(_after, least(_up_to, next - 1), NULL, 256);
    END IF;
END $$;

-- The events at these positions, in order.
CREATE OR REPLACE FUNCTION store.read_positions(_positions bigint[])
RETURNS TABLE ("position" bigint, stream text, version bigint, event_id uuid, type text, schema_version int, subject uuid,
               data bytea, metadata bytea, recorded_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = store, pg_temp
SET enable_seqscan = off SET enable_nestloop = on SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    SELECT l.position, e.stream, e.version, e.event_id, e.type, e.schema_version, e.subject, e.data, e.metadata,
           e.recorded_at
    FROM unnest(_positions) AS wanted(position) JOIN log l USING (position) JOIN events e ON e.id = l.id
    ORDER BY l.position
$$;

CREATE OR REPLACE FUNCTION store.may_read(_stream text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = store, pg_temp AS $$
    SELECT EXISTS (SELECT FROM writers WHERE category = split_part(_stream, '-', 1) AND role = session_user)
$$;

CREATE OR REPLACE FUNCTION store.read_stream(_stream text, _after_version bigint, _limit int)
RETURNS TABLE ("position" bigint, stream text, version bigint, event_id uuid, type text, schema_version int, subject uuid,
               data bytea, metadata bytea, recorded_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = store, pg_temp AS $$
BEGIN
    IF NOT may_read(_stream) THEN
        RAISE insufficient_privilege USING MESSAGE = format('role %s may not read stream %s', session_user, _stream);
    END IF;
    RETURN QUERY
        SELECT 0::bigint, e.stream, e.version, e.event_id, e.type, e.schema_version, e.subject, e.data, e.metadata,
               e.recorded_at
        FROM events e WHERE e.stream = _stream AND e.version > _after_version ORDER BY e.version LIMIT _limit;
END $$;

-- The event of that id, with its request's hash; nothing if it is unknown or in a category of another service.
CREATE OR REPLACE FUNCTION store.find_event(_event_id uuid)
RETURNS TABLE ("position" bigint, stream text, version bigint, event_id uuid, type text, schema_version int, subject uuid,
               data bytea, metadata bytea, recorded_at timestamptz, request_hash bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = store, pg_temp AS $$
    SELECT 0::bigint, e.stream, e.version, e.event_id, e.type, e.schema_version, e.subject, e.data, e.metadata,
           e.recorded_at, i.request_hash
    FROM event_ids i JOIN events e ON e.stream = i.stream AND e.version = i.version
    WHERE i.event_id = _event_id AND may_read(i.stream)
$$;

-- The event's place in the log; NULL until it is sequenced, or if it does not exist.
-- In PL/pgSQL, which keeps the plan: making it takes longer than following it.
CREATE OR REPLACE FUNCTION store.positions_of(_event_ids uuid[])
RETURNS TABLE (event_id uuid, "position" bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = store, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN QUERY SELECT i.event_id, l.position FROM event_ids i
    JOIN events e ON e.stream = i.stream AND e.version = i.version
    JOIN log l ON l.id = e.id WHERE i.event_id = ANY (_event_ids);
END $$;

CREATE OR REPLACE FUNCTION store.head(OUT epoch uuid, OUT "position" bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = store, pg_temp AS $$
    SELECT s.epoch, coalesce((SELECT max(log.position) FROM log), 0) FROM store s
$$;

-- The end of the chain, for anchors outside the database.
CREATE OR REPLACE FUNCTION store.chain_head(OUT epoch uuid, OUT "position" bigint, OUT chain_hash bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = store, pg_temp AS $$
    SELECT s.epoch, coalesce(l.position, 0), coalesce(l.chain_hash, genesis())
    FROM store s LEFT JOIN (SELECT log.position, log.chain_hash FROM log ORDER BY log.position DESC LIMIT 1) l ON true
$$;

-- Whoever may append to a stream may keep one snapshot of it. A newer one of the same code is not replaced by an older.
CREATE OR REPLACE FUNCTION store.save_snapshot(_stream text, _version bigint, _fingerprint bytea, _state bytea)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = store, pg_temp AS $$
BEGIN
    IF NOT may_read(_stream) THEN
        RAISE insufficient_privilege USING MESSAGE = format('role %s may not snapshot stream %s', session_user, _stream);
    END IF;
    INSERT INTO snapshots AS s VALUES (_stream, _version, _fingerprint, _state)
    ON CONFLICT (stream) DO UPDATE
       SET version = excluded.version, fingerprint = excluded.fingerprint, state = excluded.state
     WHERE s.fingerprint <> excluded.fingerprint OR s.version < excluded.version;
END $$;

CREATE OR REPLACE FUNCTION store.read_snapshot(_stream text, _fingerprint bytea, OUT version bigint, OUT state bytea)
RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = store, pg_temp AS $$
    SELECT s.version, s.state FROM snapshots s
    WHERE s.stream = _stream AND s.fingerprint = _fingerprint AND may_read(_stream)
$$;
