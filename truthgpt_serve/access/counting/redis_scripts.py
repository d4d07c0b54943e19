"""What a Redis or Valkey server runs, as one step each, to count for several machines.

The time is the server's, so that clocks of machines do not matter. A count of the last minute is a
hash from the number of a bucket to its amount; what runs is a hash from a process to
`number:expiry`, where a process that died expires. Both are dropped when nothing is left of them.
"""

from __future__ import annotations

_NOW = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""

TAKE = (
    _NOW
    + """
local process, width, number, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local bucket = math.floor(now / width)
local answers, all_fit = {}, true

local function minute(key)
  local buckets, used, past = {}, 0, {}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local at, amount = tonumber(fields[i]), tonumber(fields[i + 1])
    if at > bucket - number then
      buckets[#buckets + 1] = {at, amount}
      used = used + amount
    else
      past[#past + 1] = fields[i]
    end
  end
  if #past > 0 then redis.call('HDEL', key, unpack(past)) end
  table.sort(buckets, function(a, b) return a[1] < b[1] end)
  return buckets, used
end

local function wait_until(buckets, left, spare)
  if left <= spare then return 0 end
  for _, entry in ipairs(buckets) do
    left = left - entry[2]
    if left <= spare + 1e-9 then return (entry[1] + number) * width - now end
  end
  return number * width
end

local function others(key)
  local running, dead = 0, {}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local count, expiry = string.match(fields[i + 1], '(%d+):(%d+)')
    if tonumber(expiry) < now then
      dead[#dead + 1] = fields[i]
    elseif fields[i] ~= process then
      running = running + count
    end
  end
  if #dead > 0 then redis.call('HDEL', key, unpack(dead)) end
  return running
end

for i = 1, #KEYS / 2 do
  local at = 4 * i
  local amount, limit = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local most, own = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local buckets, used = minute(KEYS[2 * i - 1])
  local running = own or 0
  if most then running = running + others(KEYS[2 * i]) end
  local fits = not limit or used + amount <= limit
  local is_free = not most or running <= most
  if not (fits and is_free) then all_fit = false end
  local wait = 0
  if not fits then wait = wait_until(buckets, used, limit - amount) end
  local reset = wait_until(buckets, used, 0)
  if fits and is_free then used, reset = used + amount, (number - 1) * width end
  if not is_free then running = -1 end
  answers[i] = {tostring(used), wait, reset, running}
end

if all_fit then
  for i = 1, #KEYS / 2 do
    local at = 4 * i
    redis.call('HINCRBYFLOAT', KEYS[2 * i - 1], bucket, ARGV[at + 1])
    redis.call('PEXPIRE', KEYS[2 * i - 1], number * width)
    if tonumber(ARGV[at + 4]) then
      redis.call('HSET', KEYS[2 * i], process, ARGV[at + 4] .. ':' .. now + lease)
      redis.call('PEXPIRE', KEYS[2 * i], lease)
    end
  end
end
return answers
"""
)
"""Counts charges if all of them fit. `KEYS`: of each charge its minute and what runs. `ARGV`: the
process, milliseconds of a bucket, buckets of a minute, milliseconds after which a process is dead;
then of each charge its amount, limit, most that may run, and how many run in this process with it
(each empty for none). Answers of each: used, milliseconds to wait, and to the reset, what runs or
-1."""

CORRECT = (
    _NOW
    + """
local width, number = ARGV[3], tonumber(ARGV[4])
local bucket = math.floor(now / width)
local at = math.floor((now - ARGV[2]) / width)
local left = tonumber(ARGV[1])
if at <= bucket - number then return 0 end
if left > 0 then
  redis.call('HINCRBYFLOAT', KEYS[1], bucket, left)
  redis.call('PEXPIRE', KEYS[1], number * width)
  return 1
end
for _, step in ipairs({0, -1, 1, -2, 2}) do
  local amount = tonumber(redis.call('HGET', KEYS[1], at + step) or 0)
  local less = math.min(amount, -left)
  if less > 0 then
    redis.call('HSET', KEYS[1], at + step, tostring(amount - less))
    left = left + less
  end
end
return 1
"""
)
"""Corrects the count of an earlier time: more counts now, less is taken back around that time.
`KEYS`: a minute. `ARGV`: how much, how many milliseconds ago, and a bucket and a minute as for
`TAKE`."""

RESTORE = (
    _NOW
    + """
local width, number = ARGV[1], tonumber(ARGV[2])
local bucket = math.floor(now / width)
for i = 3, #ARGV, 2 do
  local at = math.floor((now - ARGV[i]) / width)
  if at > bucket - number then redis.call('HINCRBYFLOAT', KEYS[1], at, ARGV[i + 1]) end
end
return redis.call('PEXPIRE', KEYS[1], number * width)
"""
)
"""Adds what was counted elsewhere. `KEYS`: a minute. `ARGV`: a bucket and a minute as for `TAKE`,
then how many milliseconds ago, and how much, for each time."""

RUNNING = (
    _NOW
    + """
if ARGV[2] == '0' then return redis.call('HDEL', KEYS[1], ARGV[1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ':' .. now + ARGV[3])
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
"""
)
"""Says how many run in a process. `KEYS`: what runs. `ARGV`: the process, how many, and
milliseconds after which it is dead."""
