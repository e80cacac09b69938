"""Who may answer: people under pseudonyms, and the tokens that they come in with. Functions over an open transaction.

A token is 256 random bits; only its SHA-256 is kept, so that whoever reads the file cannot come in. Guessing one is
hopeless, so a fast hash is enough.

The token of an invite works until it is revoked; it is swapped for one of a session, which a browser keeps for a month. The
latter says so itself, and its hash is stored with a byte before it, so that old ones can be found.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
import unicodedata

from konomi.labelling.checks import whole
from konomi.labelling.records import NAME_LIMIT, Person, Refused

SESSION_SECONDS = 30 * 24 * 3600
_SESSION = "s."
"""What the token of a session begins with."""
_PERSON = """SELECT id, name, admin, EXISTS (SELECT 1 FROM tokens WHERE person = people.id), guidelines_seen, shortcuts
    FROM people"""


def add_person(db: sqlite3.Connection, name: str, admin: bool) -> Person:
    """A new person, without a token yet. Raises Refused: the name is blank, too long, or taken."""
    name = checked_name(name)
    if db.execute("SELECT 1 FROM people WHERE name = ? OR id = ?", (name, name)).fetchone():
        raise Refused("name_taken", f"there is a person {name!r} already; choose another name")
    person = f"p-{secrets.token_hex(5)}"
    db.execute("INSERT INTO people (id, name, admin, created) VALUES (?, ?, ?, ?)", (person, name, admin, time.time()))
    return find_person(db, person)


def checked_name(name: str) -> str:
    """A name as it is kept, with plain single spaces. Raises Refused: it is blank or too long.

    >>> checked_name(" 山田\u3000太郎 ")
    '山田 太郎'
    """
    name = _spaced(name)
    if not name or not name.isprintable():
        raise Refused("bad_name", f"name {name[:40]!r}: letters to call somebody by are needed")
    if len(name) > NAME_LIMIT:
        raise Refused("too_long", f"the name has {len(name):,} characters; {NAME_LIMIT} are allowed")
    return name


def _spaced(name: str) -> str:
    plain = "".join(" " if unicodedata.category(each) == "Zs" else each for each in whole(name))
    return re.sub(" +", " ", plain).strip()


def find_person(db: sqlite3.Connection, who: str) -> Person:
    """The person with this pseudonym or name. Raises Refused: there is none."""
    row = db.execute(f"{_PERSON} WHERE id = ? OR name = ?", (_spaced(who), _spaced(who))).fetchone()
    if row is None:
        raise Refused("unknown_person", f"there is no person {who[:80]!r}")
    return _person(row)


def all_people(db: sqlite3.Connection) -> list[Person]:
    """Everybody, in the order in which they came."""
    return [_person(row) for row in db.execute(f"{_PERSON} ORDER BY created, id")]


def new_token(db: sqlite3.Connection, person: str, *, session: bool = False) -> str:
    """One more token for a person: of an invite, or of a session. Sessions that are over are removed."""
    token = (_SESSION if session else "") + secrets.token_urlsafe(32)
    db.execute("INSERT INTO tokens VALUES (?, ?, ?)", (_hash(token), person, time.time()))
    if session:
        db.execute("DELETE FROM tokens WHERE length(hash) = 33 AND created < ?", (time.time() - SESSION_SECONDS,))
    return token


def is_session(token: str) -> bool:
    """Whether it is the token of a session, if it is one at all."""
    return token.startswith(_SESSION)


def person_of(db: sqlite3.Connection, token: str) -> Person | None:
    """Whose token this is; None if it is nobody's, was revoked, or is of a session that is over."""
    given = _hash(token)
    row = db.execute("SELECT hash, person, created FROM tokens WHERE hash = ?", (given,)).fetchone()
    if row is None or not hmac.compare_digest(row[0], given):
        return None
    if is_session(token) and row[2] < time.time() - SESSION_SECONDS:
        return None
    return find_person(db, row[1])


def revoke_token(db: sqlite3.Connection, token: str) -> None:
    """Nobody comes in with this token any more."""
    db.execute("DELETE FROM tokens WHERE hash = ?", (_hash(token),))


def revoke(db: sqlite3.Connection, person: Person) -> None:
    """No token of this person works any more."""
    db.execute("DELETE FROM tokens WHERE person = ?", (person.id,))


def remember(db: sqlite3.Connection, person: Person, guidelines_seen: str | None, shortcuts: bool | None) -> Person:
    """Keep what a person has read or set; None leaves it as it was."""
    db.execute(
        "UPDATE people SET guidelines_seen = coalesce(?, guidelines_seen), shortcuts = coalesce(?, shortcuts) WHERE id = ?",
        (guidelines_seen, shortcuts, person.id),
    )
    return find_person(db, person.id)


def _hash(token: str) -> bytes:
    digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
    return b"s" + digest if is_session(token) else digest


def _person(row: tuple[str, str, int, int, str | None, int]) -> Person:
    return Person(row[0], row[1], bool(row[2]), bool(row[3]), row[4], bool(row[5]))
