CREATE TABLE meta (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    magic BLOB NOT NULL CHECK (length(magic) = 8),
    format BIGINT NOT NULL,
    store_id BLOB NOT NULL CHECK (length(store_id) = 16),
    sk_epoch BIGINT NOT NULL,
    commitment BLOB NOT NULL CHECK (length(commitment) = 32),
    index_key BLOB NOT NULL CHECK (length(index_key) = 66),
    manifest BLOB NOT NULL CHECK (length(manifest) = 586)
);
CREATE TABLE key_slots (
    slot_id BIGINT NOT NULL PRIMARY KEY,
    sk_epoch BIGINT NOT NULL,
    kind BIGINT NOT NULL,
    memory_kib BIGINT NOT NULL,
    iterations BIGINT NOT NULL,
    lanes BIGINT NOT NULL,
    salt BLOB NOT NULL CHECK (length(salt) = 16),
    commitment BLOB NOT NULL CHECK (length(commitment) = 32),
    sealed BLOB NOT NULL CHECK (length(sealed) = 66)
);
CREATE TABLE embedders (
    embedder_no BIGINT NOT NULL PRIMARY KEY,
    sealed BLOB NOT NULL
);
CREATE TABLE directory (
    bucket BIGINT NOT NULL PRIMARY KEY CHECK (bucket BETWEEN 0 AND 4095),
    sealed BLOB NOT NULL CHECK (length(sealed) = 82)
);
CREATE TABLE users (
    uref BLOB NOT NULL PRIMARY KEY CHECK (length(uref) = 16),
    sk_epoch BIGINT NOT NULL,
    dek_epoch BIGINT NOT NULL,
    commitment BLOB NOT NULL CHECK (length(commitment) = 16),
    generation BIGINT NOT NULL,
    data_key BLOB NOT NULL CHECK (length(data_key) = 66),
    manifest BLOB NOT NULL CHECK (length(manifest) = 106),
    profile BLOB NOT NULL
);
CREATE TABLE records (
    uref BLOB NOT NULL CHECK (length(uref) = 16) REFERENCES users (uref),
    memory_id BLOB NOT NULL CHECK (length(memory_id) = 16),
    seq BIGINT NOT NULL,
    dek_epoch BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    text_version BIGINT NOT NULL,
    vector_version BIGINT NOT NULL,
    embedder_no BIGINT NOT NULL,
    text BLOB NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (uref, memory_id)
);
CREATE INDEX records_changed ON records (uref, changed);
CREATE TABLE items (
    uref BLOB NOT NULL CHECK (length(uref) = 16) REFERENCES users (uref),
    kind BIGINT NOT NULL,
    item_id BLOB NOT NULL CHECK (length(item_id) = 16),
    dek_epoch BIGINT NOT NULL,
    version BIGINT NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (uref, kind, item_id)
);
