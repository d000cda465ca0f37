"""What Redis runs as one step. KEYS are n value keys, then the n lease keys of the same entries."""

from __future__ import annotations

CLAIM = """
local n, claimant, ttl, answers = #KEYS / 2, ARGV[1], ARGV[2], {}
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
return answers
"""
"""ARGV: claimant, lease in ms, then nothing, or for each entry '' or '=' and the first bytes of a value that counts as
none. Answers a value, or 0: none, 1: the claimant holds the lease, 2: another does."""

STORE = """
local n, claimant, ttl = #KEYS / 2, ARGV[1], ARGV[2]
for i = 1, n do
  redis.call('SET', KEYS[i], ARGV[2 + i], 'PX', ttl)
  if claimant ~= '' and redis.call('GET', KEYS[n + i]) == claimant then
    redis.call('DEL', KEYS[n + i])
  end
end
"""
"""ARGV: claimant, life of the values in ms, the values."""

RENEW = """
local held = {}
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then
    held[i] = redis.call('PEXPIRE', KEYS[i], ARGV[2])
  else
    held[i] = 0
  end
end
return held
"""
"""KEYS: leases. ARGV: claimant, lease in ms."""

RELEASE = """
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then
    redis.call('DEL', KEYS[i])
  end
end
"""
"""KEYS: leases. ARGV: claimant."""
