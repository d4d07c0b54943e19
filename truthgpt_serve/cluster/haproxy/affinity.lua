-- Chooses the replica of a conversation, as `affinity.py` says. Its result is a variable for the rule
-- `use-server`; without it HAProxy takes the replica with the fewest connections.
--
-- A body is looked at as text, and in its first 48 KiB only: what is read wrongly costs a cache hit and
-- no more. Every loop is bounded.

local MAX_BODY_BYTES = 49152
local MAX_KEY_BYTES = 256
local MAX_PROMPT_BYTES = 1024
local MAX_TRIES = 8
local MAX_MESSAGES = 64
local MAX_STEPS = 2048

-- A replica takes a request if it has not had too many of the last requests and does not hold far too
-- many now. While there are no more requests than replicas, one with a single request takes any.
local RATE_FACTOR, RATE_SLACK, WINDOW = 1.15, 4, 64
local LOAD_FACTOR, LOAD_SLACK = 1.5, 3
local MAX_KNOWN = 4096

local QUOTE, OPENS, BACKSLASH = 34, { [91] = true, [123] = true }, 92
local ARRAY = "^[ \t\r\n]*:[ \t\r\n]*%["
local TEXT = '^[ \t\r\n]*:[ \t\r\n]*"'

-- Returns where the value of a key begins: behind what `opening` matches. A key in a string has other
-- quotes, so it is not found; one in a nested object may be.
local function find_value(body, key, opening)
  local at = 1
  for _ = 1, MAX_TRIES do
    local _, last = body:find(key, at, true)
    if not last then
      return nil
    end
    local _, found = body:find(opening, last + 1)
    if found then
      return found + 1
    end
    at = last + 1
  end
  return nil
end

-- Reads a string, from behind its first quote on. Returns the position behind its last quote, or nil;
-- the steps that are left; and how far it came.
local function skip_string(body, at, steps)
  while steps > 0 do
    local quote = body:find('"', at, true)
    if not quote then
      return nil, steps, #body + 1
    end
    local before = quote - 1
    while before >= at and body:byte(before) == BACKSLASH and steps > 0 do
      before, steps = before - 1, steps - 1
    end
    at, steps = quote + 1, steps - 1
    if (quote - before) % 2 == 1 then
      return at, steps, at
    end
  end
  return nil, steps, at
end

-- Reads the next object or array of an array. Returns the position behind it, or nil where there is
-- none; the steps that are left; and how far it came.
local function skip_element(body, at, steps)
  local depth = 0
  while steps > 0 do
    local found = body:find('["{}%[%]]', at)
    if not found then
      return nil, steps, #body + 1
    end
    local byte, behind = body:byte(found), nil
    at, steps = found + 1, steps - 1
    if byte == QUOTE then
      behind, steps, at = skip_string(body, at, steps)
      if not behind then
        return nil, steps, at
      end
    elseif OPENS[byte] then
      depth = depth + 1
    elseif depth == 0 then
      return nil, steps, found -- the end of the array itself
    else
      depth = depth - 1
      if depth == 0 then
        return at, steps, at
      end
    end
  end
  return nil, steps, at
end

-- Returns the messages up to the first of a user, as they stand in the body, or as far as they are
-- read: a conversation that has grown is read equally far.
local function beginning(body, first)
  local at, steps = first, MAX_STEPS
  for _ = 1, MAX_MESSAGES do
    local behind, reached
    behind, steps, reached = skip_element(body, at, steps)
    if not behind then
      return body:sub(first, reached - 1)
    end
    local message = body:sub(at, behind - 1)
    local role = find_value(message, '"role"', TEXT)
    at = behind
    if role and message:find('^user"', role) then
      break
    end
  end
  return body:sub(first, at - 1)
end

-- Returns the beginning of a text, or of an array of tokens.
local function prompt(body, key)
  local first = find_value(body, key, TEXT)
  if first then
    local _, _, reached = skip_string(body, first, MAX_STEPS)
    return body:sub(first, math.min(reached - 1, first + MAX_PROMPT_BYTES - 1))
  end
  first = find_value(body, key, ARRAY)
  return first and body:sub(first, first + MAX_PROMPT_BYTES - 1)
end

local function conversation(body, path)
  local key = path:find("/responses$") and '"input"' or '"messages"'
  local first = find_value(body, key, ARRAY)
  if first then
    return beginning(body, first)
  end
  return prompt(body, key == '"input"' and key or '"prompt"')
end

local function header(txn, name)
  local value = txn.sf:req_fhdr(name)
  return value ~= "" and value:sub(1, 2 * MAX_KEY_BYTES) or nil
end

-- Returns what the requests of a conversation have in common, or nil.
local function find_key(txn, mode)
  local key = header(txn, "x-session-id")
  if key then
    return key:sub(1, MAX_KEY_BYTES)
  end
  if txn.sf:req_fhdr("content-encoding") ~= "" then
    return nil
  end
  key = header(txn, "x-truthgpt-cache-key")
  if key then
    return (key:gsub("%x%x", function(hex) return string.char(tonumber(hex, 16)) end))
  end
  if txn.sf:req_fhdr("content-type"):sub(1, 16):lower() ~= "application/json" then
    return nil
  end
  local body = txn.sf:req_body():sub(1, MAX_BODY_BYTES)
  local first = find_value(body, '"prompt_cache_key"', TEXT)
  key = first and body:sub(first, first + MAX_KEY_BYTES - 1):match('^[^"]+')
  if key or mode ~= "prefix" then
    return key
  end
  key = conversation(body, txn.sf:path())
  if not key or key == "" then
    return nil
  end
  local adapter = header(txn, "x-truthgpt-adapter")
  return adapter and adapter .. "\n" .. key or key
end

local function seed(name)
  local hash = 0xcbf29ce484222325
  for at = 1, #name do
    hash = (hash ~ name:byte(at)) * 0x100000001b3
  end
  return hash
end

local function weight(key, salt)
  local hash = key ~ salt
  hash = (hash ~ (hash >> 33)) * 0xff51afd7ed558ccd
  hash = (hash ~ (hash >> 33)) * 0xc4ceb9fe1a85ec53
  return hash ~ (hash >> 33)
end

local pools = {}

-- Returns a backend's servers but those that stand in when there is no other, and where the last
-- conversations were: in `known`, and those before them in `older`.
local function pool_of(backend)
  local pool = pools[backend]
  if pool then
    return pool
  end
  pool = { servers = {}, known = {}, older = {}, num_known = 0, step = 1 }
  for name, server in pairs(core.backends[backend].servers) do
    if not server:is_backup() then
      local one = { name = name, seed = seed(name), connections = 0, rate = 0, is_up = false }
      pool.servers[#pool.servers + 1] = one
    end
  end
  pools[backend] = pool
  return pool
end

-- Notes where a conversation is, and counts its request; later requests count more than earlier ones.
local function note(pool, hash, server)
  if pool.known[hash] ~= server then
    pool.num_known = pool.num_known + (pool.known[hash] and 0 or 1)
    pool.known[hash] = server
    if pool.num_known >= MAX_KNOWN then
      pool.known, pool.older, pool.num_known = {}, pool.known, 0
    end
  end
  server.rate = server.rate + pool.step
  pool.step = pool.step * (1 + 1 / (WINDOW * #pool.servers))
  if pool.step > 1e9 then
    for _, one in ipairs(pool.servers) do
      one.rate = one.rate / pool.step
    end
    pool.step = 1
  end
end

-- Returns the server of a conversation: the one that it was on, else the one with the highest weight
-- among those that have room; nil where none has. Runs in a rule of the backend itself.
local function choose(txn, backend, key, places)
  local pool, hash = pool_of(backend), txn.c:xxh64(key)
  local num_up, connections, rate = 0, 0, 0
  for _, server in ipairs(pool.servers) do
    server.is_up = txn.f:srv_is_up(server.name)
    if server.is_up then
      server.connections = txn.f:srv_conn(server.name)
      num_up = num_up + 1
      connections, rate = connections + server.connections, rate + server.rate
    end
  end
  local most = math.min(places, LOAD_FACTOR * (connections + 1) / num_up + LOAD_SLACK)
  local most_rate = RATE_FACTOR * rate / num_up + RATE_SLACK * pool.step
  local function has_room(server)
    return server.is_up
      and server.connections < most
      and (server.rate < most_rate or server.connections <= 1 and connections <= num_up)
  end
  local best, highest = pool.known[hash] or pool.older[hash], nil
  if not best or not has_room(best) then
    best = nil
    for _, server in ipairs(pool.servers) do
      local own = weight(hash, server.seed)
      if (not best or own > highest) and has_room(server) then
        best, highest = server, own
      end
    end
  end
  if best then
    note(pool, hash, best)
  end
  return best and best.name
end

core.register_action("affinity", { "http-req" }, function(txn, backend, mode, places)
  local key = find_key(txn, mode)
  local server = key and choose(txn, backend, key, txn:get_var(places) or math.huge)
  if server then
    txn:set_var("txn.server", server)
  end
end, 3)
