"""What runs inside Redis: one Lua script per request, so that each happens as a whole, at one instant.

Every key is named ``killswitch:...``, so that a database can be shared and one pattern of an access list covers all:

=========================  =========  ==========================================================================
``killswitch:key:KEY``     hash       ``value`` and ``version`` of the port's KEY; with an expiry while it is leased
``killswitch:meta``        hash       last ``version``; ``birth``, this life's name; ``keys``, their number; ``pruned``
``killswitch:index``       sorted     every KEY, in the order of bytes
``killswitch:changes``     sorted     every KEY by the version of its last change, deleted ones included
``killswitch:deleted``     sorted     deleted KEYs by version; beyond 10,000 the oldest are forgotten
``killswitch:leased``      sorted     leased KEYs by the time at which they run out
``killswitch:probe``       none       what a new connection tries its rights on; always deleted again
=========================  =========  ==========================================================================

A script that writes makes all its checks before the first write, because Redis undoes nothing. What it may not do it
finds out before, too: the keys that it names are checked by Redis when it begins, full memory and being a replica at
its first write, and the commands by the probe when the connection was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from killswitch.stores.front import end_of_prefix, key_bytes

PREFIX = "killswitch:"
DATA_PREFIX = f"{PREFIX}key:"
PROBE_KEY = f"{PREFIX}probe"
TABLES = tuple(f"{PREFIX}{name}" for name in ("meta", "index", "changes", "deleted", "leased"))

TOMBSTONES_MAX = 10_000
CHANGES_PER_ANSWER = 100
# A message that names more keys than this names none, and everybody looks.
KEYS_NAMED_MAX = 100
LEASES_PER_SWEEP = 1_000

# The first element of every answer.
REFUSED, DONE, DAMAGED = 0, 1, 2

_COMMON = (
    f"""
local DATA, KEYS_NAMED_MAX, TOMBSTONES_MAX = '{DATA_PREFIX}', {KEYS_NAMED_MAX}, {TOMBSTONES_MAX}
local CHANGES_PER_ANSWER, LEASES_PER_SWEEP = {CHANGES_PER_ANSWER}, {LEASES_PER_SWEEP}
"""
    + """local meta, index, changes, deleted, leased = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local channel, counted = ARGV[1], ARGV[2] == '1'
local lost = nil

local function name_of(key) return string.sub(key, #DATA + 1) end

-- Lua would write a version as 1.7e+15.
local function text(number) return string.format('%.0f', number) end

local function time_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- A write even where nothing is written: a replica refuses it, so that nobody reads from one. Counted, it makes the
-- replicas confirm something that was not there before.
local function fence()
  if counted then redis.call('HINCRBY', meta, 'fence', 1) else redis.call('HDEL', meta, 'nothing') end
end

-- The version, or '' when absent. A key that is in the index and not leased cannot be absent: somebody else, or an
-- eviction, has removed it.
local function version_of(key)
  local version = redis.call('HGET', key, 'version')
  if version then return version end
  local name = name_of(key)
  if redis.call('ZSCORE', index, name) and not redis.call('ZSCORE', leased, name) then lost = name end
  return ''
end

-- Raises before anything is written when one of them is not what we made.
local function check_tables()
  for table = 2, 5 do redis.call('ZCARD', KEYS[table]) end
end

-- Versions grow through lost data, too: a version that is the time is greater than all that were before the loss.
local function next_version(names)
  local last = redis.call('HGET', meta, 'version')
  local version = text(math.max(tonumber(last or '0') + 1, time_us()))
  local said = {last or '0', version}
  if #names <= KEYS_NAMED_MAX then said[3] = names end
  -- Before the first write, because here a missing right to the channel shows. Nobody acts on it before all is written.
  redis.call('PUBLISH', channel, cjson.encode(said))
  redis.call('HSET', meta, 'version', version)
  -- A watch that looked first has given it one, and would take another for the loss of all that it knew.
  if not last and not redis.call('HGET', meta, 'birth') then redis.call('HSET', meta, 'birth', version) end
  return version
end

local function note_put(name, version)
  redis.call('HINCRBY', meta, 'keys', redis.call('ZADD', index, 0, name))
  redis.call('ZADD', changes, version, name)
  redis.call('ZREM', deleted, name)
end

local function note_deletion(name, version)
  redis.call('HINCRBY', meta, 'keys', 0 - redis.call('ZREM', index, name))
  redis.call('ZREM', leased, name)
  redis.call('ZADD', changes, version, name)
  redis.call('ZADD', deleted, version, name)
end

local function prune()
  local surplus = redis.call('ZCARD', deleted) - TOMBSTONES_MAX
  if surplus <= 0 then return end
  local oldest = redis.call('ZPOPMIN', deleted, surplus)
  for at = 1, #oldest, 2 do
    redis.call('ZREM', changes, oldest[at])
    redis.call('HSET', meta, 'pruned', text(tonumber(oldest[at + 1])))
  end
end

"""
)


@dataclass(frozen=True, slots=True)
class Script:
    """Source and the name by which Redis knows it once it has seen it."""

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # Redis's name for it, no protection of anything.
        object.__setattr__(self, "sha", hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest())


READ = Script(
    _COMMON
    + """
fence()
local version = version_of(KEYS[6])
if lost then return {2, lost} end
if version == '' then return {1} end
return {1, redis.call('HGET', KEYS[6], 'value'), version}
"""
)

SCAN = Script(
    _COMMON
    + """
fence()
if tonumber(redis.call('HGET', meta, 'keys') or '0') ~= redis.call('ZCARD', index) then return {2, index} end
local answer = {1}
for _, name in ipairs(redis.call('ZRANGEBYLEX', index, ARGV[3], ARGV[4])) do
  local version = version_of(DATA .. name)
  if lost then return {2, lost} end
  if version ~= '' then
    answer[#answer + 1] = name
    answer[#answer + 1] = redis.call('HGET', DATA .. name, 'value')
    answer[#answer + 1] = version
  end
end
return answer
"""
)

# KEYS from the sixth: expected, put, deleted. ARGV from the third: how many of each; expected versions; values.
COMMIT = Script(
    _COMMON
    + """
local expected, puts, deletes = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local holds, found = true, {0}
for at = 1, expected do
  found[at + 1] = version_of(KEYS[5 + at])
  if lost then return {2, lost} end
  holds = holds and found[at + 1] == ARGV[5 + at]
end
local names = {}
for at = 1, puts do
  local key = KEYS[5 + expected + at]
  redis.call('HGET', key, 'version')
  names[at] = name_of(key)
end
for at = 1, deletes do
  local key = KEYS[5 + expected + puts + at]
  if redis.call('HGET', key, 'version') or redis.call('ZSCORE', index, name_of(key)) then
    names[#names + 1] = name_of(key)
  end
end
check_tables()
if not holds then
  fence()
  return found
end
if #names == 0 then
  fence()
  return {1, redis.call('HGET', meta, 'version') or '1'}
end
local version = next_version(names)
for at = 1, puts do
  local key = DATA .. names[at]
  redis.call('HSET', key, 'value', ARGV[5 + expected + at], 'version', version)
  redis.call('PERSIST', key)
  redis.call('ZREM', leased, names[at])
  note_put(names[at], version)
end
for at = puts + 1, #names do
  redis.call('DEL', DATA .. names[at])
  note_deletion(names[at], version)
end
prune()
return {1, version}
"""
)

# KEYS[6]: the key. ARGV from the third: value, time to live in milliseconds.
HOLD = Script(
    _COMMON
    + """
local found = version_of(KEYS[6])
if lost then return {2, lost} end
check_tables()
if found ~= '' then
  fence()
  return {0, found}
end
local name = name_of(KEYS[6])
local version = next_version({name})
redis.call('HSET', KEYS[6], 'value', ARGV[3], 'version', version)
redis.call('PEXPIRE', KEYS[6], ARGV[4])
redis.call('ZADD', leased, text(time_us() / 1000 + ARGV[4]), name)
note_put(name, version)
return {1, version}
"""
)

# KEYS[6]: the key. ARGV from the third: the lease's version, time to live in milliseconds.
KEEP_ALIVE = Script(
    _COMMON
    + """
fence()
redis.call('ZCARD', leased)
if redis.call('HGET', KEYS[6], 'version') ~= ARGV[3] then return {0} end
redis.call('PEXPIRE', KEYS[6], ARGV[4])
redis.call('ZADD', leased, text(time_us() / 1000 + ARGV[4]), name_of(KEYS[6]))
return {1}
"""
)

# KEYS[6]: the key. ARGV[3]: the lease's version.
RELEASE = Script(
    _COMMON
    + """
check_tables()
if redis.call('HGET', KEYS[6], 'version') ~= ARGV[3] then
  fence()
  return {0}
end
local name = name_of(KEYS[6])
local version = next_version({name})
redis.call('DEL', KEYS[6])
note_deletion(name, version)
prune()
return {1}
"""
)

# ARGV from the third: birth and version that the caller knows, '' at first; prefix. Turns leases that ran out into
# deletions, then answers birth, version up to which this tells everything, whether that is a gap, whether there is
# more, and name, value, version of each key that changed.
FOLLOW = Script(
    _COMMON
    + """
check_tables()
fence()
local now_ms = time_us() / 1000
local gone = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', leased, '-inf', text(now_ms), 'LIMIT', 0, LEASES_PER_SWEEP)) do
  local left_ms = redis.call('PTTL', DATA .. name)
  if left_ms == -2 then
    gone[#gone + 1] = name
  elseif left_ms == -1 then
    redis.call('ZREM', leased, name)
  else
    redis.call('ZADD', leased, text(now_ms + left_ms + 1), name)
  end
end
if #gone > 0 then
  local version = next_version(gone)
  for _, name in ipairs(gone) do note_deletion(name, version) end
  prune()
end

local birth = redis.call('HGET', meta, 'birth')
if not birth then
  -- An empty store gets its birth here, so that the caller notices when all that comes now is lost before it looks
  -- again. After the fence a full Redis takes it, too: it refuses memory to the first write of a script alone.
  birth = text(time_us())
  redis.call('HSET', meta, 'birth', birth)
end
local newest = redis.call('HGET', meta, 'version') or '0'
local pruned = redis.call('HGET', meta, 'pruned') or '0'
local known_birth, known, prefix = ARGV[3], ARGV[4], ARGV[5]
if known == '' or birth ~= known_birth or tonumber(newest) < tonumber(known) or tonumber(pruned) > tonumber(known) then
  return {1, birth, newest, 1, 0}
end
local upto, more = newest, 0
local page = redis.call('ZRANGEBYSCORE', changes, '(' .. known, '+inf', 'WITHSCORES', 'LIMIT', 0, CHANGES_PER_ANSWER)
if #page == 2 * CHANGES_PER_ANSWER then
  -- What was written together is told together.
  upto, more = text(tonumber(page[#page])), 1
  page = redis.call('ZRANGEBYSCORE', changes, '(' .. known, upto, 'WITHSCORES')
end
local answer = {1, birth, upto, 0, more}
for at = 1, #page, 2 do
  local name = page[at]
  if string.sub(name, 1, #prefix) == prefix then
    local version = redis.call('HGET', DATA .. name, 'version')
    -- Gone, and not swept yet: its deletion comes with a version of its own.
    if version or not redis.call('ZSCORE', index, name) then
      answer[#answer + 1] = name
      answer[#answer + 1] = version and redis.call('HGET', DATA .. name, 'value')
      answer[#answer + 1] = text(tonumber(page[at + 1]))
    end
  end
end
return answer
"""
)

# Every command that the others use, on a key of its own: who may not do all of them does nothing by halves. DEL first:
# it needs no memory, so that a full Redis can still be read, and nothing is left behind when a later one is refused.
PROBE = Script(
    """
local key = KEYS[1]
redis.call('DEL', key)
redis.call('TIME')
redis.call('HGET', key, 'a')
redis.call('HDEL', key, 'a')
redis.call('PEXPIRE', key, 1)
redis.call('PERSIST', key)
redis.call('PTTL', key)
redis.call('ZADD', key, 'XX', 0, 'a')
redis.call('ZCARD', key)
redis.call('ZSCORE', key, 'a')
redis.call('ZRANGEBYLEX', key, '-', '+')
redis.call('ZRANGEBYSCORE', key, '-inf', '+inf')
redis.call('ZREM', key, 'a')
redis.call('ZPOPMIN', key, 1)
redis.call('HINCRBY', key, 'a', 1)
redis.call('DEL', key)
redis.call('HSET', key, 'a', '1')
redis.call('DEL', key)
return {1}
"""
)


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """A script with what it works on."""

    script: Script
    keys: tuple[bytes, ...]
    arguments: tuple[bytes, ...]

    def by_name(self) -> tuple[bytes | int, ...]:
        """The command for a Redis that has seen the script."""
        return (b"EVALSHA", self.script.sha.encode(), len(self.keys), *self.keys, *self.arguments)

    def in_full(self) -> tuple[bytes | int, ...]:
        """The command for one that has not."""
        return (b"EVAL", self.script.source.encode(), len(self.keys), *self.keys, *self.arguments)


class Calls:
    """Makes the calls of one store.

    Args:
        database: number of the database; channels are common to all of a server, keys are not.
        counted: whether every call writes something that replicas can confirm.
    """

    def __init__(self, database: int, *, counted: bool) -> None:
        self.channel = f"{PREFIX}{database}:changes"
        self._counted = counted

    def read(self, key: str) -> ScriptCall:
        return self._call(READ, [key])

    def scan(self, prefix: str) -> ScriptCall:
        first, end = lexical_range(prefix)
        return self._call(SCAN, [], first, end)

    def commit(self, expect: Mapping[str, int | None], puts: Mapping[str, bytes], deletes: Sequence[str]) -> ScriptCall:
        """No key stands twice in ``deletes``."""
        return self._call(
            COMMIT,
            [*expect, *puts, *deletes],
            b"%d" % len(expect),
            b"%d" % len(puts),
            b"%d" % len(deletes),
            *(b"" if version is None else b"%d" % version for version in expect.values()),
            *puts.values(),
        )

    def hold(self, key: str, value: bytes, ttl_ms: int) -> ScriptCall:
        return self._call(HOLD, [key], value, b"%d" % ttl_ms)

    def keep_alive(self, key: str, version: int, ttl_ms: int) -> ScriptCall:
        return self._call(KEEP_ALIVE, [key], b"%d" % version, b"%d" % ttl_ms)

    def release(self, key: str, version: int) -> ScriptCall:
        return self._call(RELEASE, [key], b"%d" % version)

    def follow(self, birth: bytes, known: int | None, prefix: str, *, counted: bool) -> ScriptCall:
        return self._call(
            FOLLOW, [], birth, b"" if known is None else b"%d" % known, key_bytes(prefix), counted=counted
        )

    def _call(self, script: Script, keys: Sequence[str], *arguments: bytes, counted: bool | None = None) -> ScriptCall:
        mark = self._counted if counted is None else counted
        return ScriptCall(
            script,
            (*(table.encode() for table in TABLES), *(DATA_PREFIX.encode() + key_bytes(key) for key in keys)),
            (self.channel.encode(), b"1" if mark else b"0", *arguments),
        )


def lexical_range(prefix: str) -> tuple[bytes, bytes]:
    """Both ends of the range of all keys that begin with ``prefix``, as ``ZRANGEBYLEX`` wants them."""
    first = key_bytes(prefix)
    end = end_of_prefix(first)
    # "+" is Redis's word for the end of all.
    return b"[" + first, b"+" if end is None else b"(" + end
