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
