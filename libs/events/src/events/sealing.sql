-- The keys that personal data in events is encrypted with: one per data subject, each wrapped by a master key that
-- the database never sees. A row without a key is a tombstone: that person has been erased and gets no key again.

CREATE SCHEMA IF NOT EXISTS vault;

CREATE TABLE IF NOT EXISTS vault.subject_key (
    subject    uuid PRIMARY KEY,
    wrapped    bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    erased_at  timestamptz,
    CHECK ((wrapped IS NULL) = (erased_at IS NOT NULL))
);

CREATE OR REPLACE FUNCTION vault.find(_subject uuid) RETURNS bytea
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = vault, pg_temp AS $$
    SELECT wrapped FROM subject_key WHERE subject = _subject
$$;

-- The keys of many subjects at once, in no order; who has none, or was erased, is left out.
CREATE OR REPLACE FUNCTION vault.find_many(_subjects uuid[]) RETURNS TABLE (subject uuid, wrapped bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = vault, pg_temp AS $$
    SELECT k.subject, k.wrapped FROM subject_key k WHERE k.subject = ANY (_subjects) AND k.wrapped IS NOT NULL
$$;

-- The subject's key: the one that is there, or the candidate. NULL where the subject has been erased.
CREATE OR REPLACE FUNCTION vault.find_or_create(_subject uuid, _candidate bytea) RETURNS bytea
LANGUAGE plpgsql SECURITY DEFINER SET search_path = vault, pg_temp AS $$
BEGIN
    INSERT INTO subject_key (subject, wrapped) VALUES (_subject, _candidate) ON CONFLICT DO NOTHING;
    RETURN (SELECT wrapped FROM subject_key WHERE subject = _subject);
END $$;

-- Destroys the key for good. Whether there was one to destroy.
CREATE OR REPLACE FUNCTION vault.erase(_subject uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = vault, pg_temp AS $$
DECLARE had_key boolean;
BEGIN
    SELECT wrapped IS NOT NULL INTO had_key FROM subject_key WHERE subject = _subject FOR UPDATE;
    INSERT INTO subject_key (subject, wrapped, erased_at) VALUES (_subject, NULL, now())
    ON CONFLICT (subject) DO UPDATE SET wrapped = NULL, erased_at = coalesce(subject_key.erased_at, now());
    RETURN coalesce(had_key, false);
END $$;

-- Each service's own key, by its role: wrapped with a master key that only the service has.
CREATE TABLE IF NOT EXISTS vault.own_key (
    role       name PRIMARY KEY,
    wrapped    bytea NOT NULL,
    wrapped_at timestamptz NOT NULL DEFAULT now()
);

-- The own key of the role that asks: the one that is there, or the candidate, if there is one.
CREATE OR REPLACE FUNCTION vault.find_or_create_own(_candidate bytea) RETURNS bytea
LANGUAGE plpgsql SECURITY DEFINER SET search_path = vault, pg_temp AS $$
BEGIN
    INSERT INTO own_key (role, wrapped) SELECT session_user, _candidate WHERE _candidate IS NOT NULL ON CONFLICT DO NOTHING;
    RETURN (SELECT wrapped FROM own_key WHERE role = session_user);
END $$;

-- The same key, wrapped anew. Nothing happens where another replica was first.
CREATE OR REPLACE FUNCTION vault.rewrap_own(_former bytea, _wrapped bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = vault, pg_temp AS $$
BEGIN
    UPDATE own_key SET wrapped = _wrapped, wrapped_at = now() WHERE role = session_user AND wrapped = _former;
END $$;
