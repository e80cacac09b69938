-- a store as version 1 left it
PRAGMA application_id = 1802464879;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE answers (id TEXT PRIMARY KEY, shown TEXT NOT NULL REFERENCES shown ON DELETE CASCADE,
            revision INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, ranks TEXT, flags TEXT NOT NULL, reason TEXT,
            comment TEXT NOT NULL, confidence INTEGER, seconds REAL NOT NULL, digest BLOB NOT NULL);
INSERT INTO "answers" VALUES('11111111-2222-3333-4444-555555555555','EF_mUxo8SqLBNacnjehE',1,1800000000.0,'ranked','[1, 2]','[["broken"], []]',NULL,'kept',NULL,10.0,X'BBE1FABFEA439ADE10EA70E0CF1D7CC9833194C8A36086B252E607054124A108');
CREATE TABLE candidates (task INTEGER NOT NULL REFERENCES tasks, number INTEGER NOT NULL, text TEXT NOT NULL,
            lang TEXT NOT NULL, names_model INTEGER NOT NULL, source TEXT NOT NULL, PRIMARY KEY (task, number)) WITHOUT ROWID;
INSERT INTO "candidates" VALUES(1,0,'text 0.0','en',0,'{"model": "lab/secret-model-0", "seed": 0}');
INSERT INTO "candidates" VALUES(1,1,'text 0.1','en',0,'{"model": "lab/secret-model-1", "seed": 0}');
INSERT INTO "candidates" VALUES(2,0,'text 1.0','en',0,'{"model": "lab/secret-model-0", "seed": 1}');
INSERT INTO "candidates" VALUES(2,1,'text 1.1','en',0,'{"model": "lab/secret-model-1", "seed": 1}');
INSERT INTO "candidates" VALUES(3,0,'text 2.0','en',0,'{"model": "lab/secret-model-0", "seed": 2}');
INSERT INTO "candidates" VALUES(3,1,'text 2.1','en',0,'{"model": "lab/secret-model-1", "seed": 2}');
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE people (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, admin INTEGER NOT NULL, created REAL NOT NULL);
INSERT INTO "people" VALUES('p-0123456789','Aki',1,1800000000.0);
CREATE TABLE shown (id TEXT PRIMARY KEY, task INTEGER NOT NULL REFERENCES tasks,
            person TEXT NOT NULL REFERENCES people ON DELETE CASCADE, repeat INTEGER NOT NULL, places TEXT NOT NULL,
            at REAL NOT NULL, until REAL NOT NULL, number INTEGER, answered REAL, kind TEXT, revision INTEGER NOT NULL DEFAULT 0)
            WITHOUT ROWID;
INSERT INTO "shown" VALUES('EF_mUxo8SqLBNacnjehE',3,'p-0123456789',0,'10',1800000000.0,1800001800.0,1,1800000000.0,'ranked',1);
CREATE TABLE tasks (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, place REAL NOT NULL,
            covered INTEGER NOT NULL DEFAULT 0, kind TEXT NOT NULL, lang TEXT NOT NULL, prompt TEXT NOT NULL,
            columns TEXT NOT NULL);
INSERT INTO "tasks" VALUES(1,'4d5927e9fa0ef1693b10ecfb2a78f4d8',4.43807477625725921299e-01,0,'rank','en','prompt 0','{"topic": "hidden column 0"}');
INSERT INTO "tasks" VALUES(2,'2bc3910910695bb5c941e605437b4729',8.46147425382967388607e-01,0,'rank','en','prompt 1','{"topic": "hidden column 1"}');
INSERT INTO "tasks" VALUES(3,'4c0e9d1a91ebf98b7c242eb0490768d1',8.38677955364678595628e-01,1,'rank','en','prompt 2','{"topic": "hidden column 2"}');
CREATE TABLE tokens (hash BLOB PRIMARY KEY, person TEXT NOT NULL REFERENCES people ON DELETE CASCADE,
            created REAL NOT NULL) WITHOUT ROWID;
INSERT INTO "tokens" VALUES(X'FAFDCDB608ED43C6210B13A47152BB6BE5FCD5D9051AD176A286A6FD04737F11','p-0123456789',1800000000.0);
CREATE INDEX tasks_in_turn ON tasks (covered, place);
CREATE INDEX tokens_of ON tokens (person);
CREATE UNIQUE INDEX shown_once ON shown (person, task, repeat);
CREATE INDEX shown_numbers ON shown (person, repeat, number);
CREATE INDEX shown_newest ON shown (person, answered);
CREATE INDEX shown_leases ON shown (task, until) WHERE number IS NULL;
CREATE UNIQUE INDEX answers_of ON answers (shown, revision);
COMMIT;
