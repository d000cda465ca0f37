"""What Redis runs as one step. KEYS are n value keys, the n lease keys of the same entries, and, where all keys may
stand in one script, the hash of purges; the answer's last number is then how many purges there were."""

from __future__ import annotations

from promptlooper.cache.purges import EVERYTHING, NUMBER
from promptlooper.redis_access import Script

_PURGES = f"""
if #KEYS % 2 == 1 then
  answers[#answers + 1] = tonumber(redis.call('HGET', KEYS[#KEYS], '{NUMBER}') or '0')
end
return answers
"""

CLAIM = Script(
    """
local n, claimant, ttl, answers = math.floor(#KEYS / 2), ARGV[1], ARGV[2], {}
for i = 1, n do
  local value, seen, lease = redis.call('GET', KEYS[i]), ARGV[2 + i], KEYS[n + i]
  if value and not (seen and seen ~= '' and string.sub(value, 1, #seen - 1) == string.sub(seen, 2)) then
    answers[i] = value
  elseif claimant == '' then
    answers[i] = 0
  elseif redis.call('SET', lease, claimant, 'NX', 'PX', ttl) then
    answers[i] = 1
  elseif redis.call('GET', lease) == claimant then
    redis.call('PEXPIRE', lease, ttl)
    answers[i] = 1
  else
    answers[i] = 2
  end
end
"""
    + _PURGES
)
"""ARGV: claimant, lease in ms, then nothing, or for each entry '' or '=' and the first bytes of a value that counts as
none. Answers a value, or 0: none, 1: the claimant holds the lease, 2: another does."""

STORE = Script(
    """
local n, claimant, ttl, answers = math.floor(#KEYS / 2), ARGV[1], ARGV[2], {}
for i = 1, n do
  redis.call('SET', KEYS[i], ARGV[2 + i], 'PX', ttl)
  answers[i] = 0
  if claimant ~= '' and redis.call('GET', KEYS[n + i]) == claimant then
    redis.call('DEL', KEYS[n + i])
  end
end
"""
    + _PURGES
)
"""ARGV: claimant, life of the values in ms, the values. Answers 0 for each."""

RENEW = Script("""
local held = {}
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then
    held[i] = redis.call('PEXPIRE', KEYS[i], ARGV[2])
  else
    held[i] = 0
  end
end
return held
""")
"""KEYS: leases. ARGV: claimant, lease in ms."""

RELEASE = Script("""
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then
    redis.call('DEL', KEYS[i])
  end
end
return {}
""")
"""KEYS: leases. ARGV: claimant."""

PURGE = Script(f"""
local number = redis.call('HINCRBY', KEYS[1], '{NUMBER}', 1)
if ARGV[1] == '{EVERYTHING}' then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], '{NUMBER}', number, ARGV[1], number)
else
  redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
end
""")
"""KEYS: the hash of purges. ARGV: the pattern. See purges.py."""

ADD = Script("""
redis.call('HSETNX', KEYS[1], 'since', ARGV[1])
for i = 2, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
end
""")
"""KEYS: the hash of counts. ARGV: seconds since the epoch, then names and numbers."""
