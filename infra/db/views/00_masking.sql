-- Text that may hold addresses, without what stands in them before an @ (names and passwords) and without what follows
-- their question mark (signatures). For places, which are one address: a query goes to its end. Postgres puts both into
-- the views that use them, and most text holds no address, which is cheap to see.
CREATE FUNCTION views.place_shown(place text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN place LIKE '%://%@%' OR place LIKE '%://%?%'
        THEN regexp_replace(regexp_replace(place, '://[^/\s]*@', '://'), '(://[^\s?]*)\?.*$', '\1?…')
    ELSE place
END;

-- For words of errors and reasons, which may hold several: a query goes to the next blank.
CREATE FUNCTION views.words_shown(words text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN words LIKE '%://%@%' OR words LIKE '%://%?%'
        THEN regexp_replace(
            regexp_replace(words, '://[^/\s]*@', '://', 'g'), '(://[^\s?]*\?)[^\s]+', '\1…', 'g'
        )
    ELSE words
END;
