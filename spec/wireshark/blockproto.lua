-- blockproto, version 1, for Wireshark and tshark (3.4 or newer): see README.md beside this file.
--
-- The layouts below are the tables of protocol.md and identity.md. A head is read by one loop: fixed fields, then
-- strings and lists, then TLVs to its last byte. Nothing that comes over the wire may raise a Lua error: every read asks
-- whether the bytes are there, and a head that ends too early is an expert info.

local bp = Proto("blockproto", "blockproto, version 1")

bp.prefs.check = Pref.bool("Compare the check of each frame", true, "CRC-32 of header and head (BP1-FRM-003)")

local PREFACE = "\255BKP\r\n\026\n"
local PORT = 7878
local ALPN = "blockproto/1"
local SHORT_NAME = "BP1"
local HEADER_LENGTH = 16
local HEAD_AND_PAYLOAD_MAX = 65535 + 1048576
local UNKNOWN_LENGTH_MAX = 65536
local MUST_UNDERSTAND_TYPE, MUST_UNDERSTAND_TLV, MUST_UNDERSTAND_FLAGS = 0x80, 0x8000, 0xF000

-- ---- what the numbers mean ------------------------------------------------------------------------------------------

local ERRORS = {
  [1] = "MALFORMED", [2] = "TOO_LARGE", [3] = "BAD_CHECK", [4] = "UNEXPECTED", [5] = "UNSUPPORTED_VERSION",
  [6] = "UNSUPPORTED", [7] = "CREDIT_EXCEEDED", [8] = "TIMEOUT", [9] = "TOO_MANY_STREAMS", [10] = "NOT_BLOCKPROTO",
  [20] = "NAME_REFUSED", [21] = "FILE_EXISTS", [22] = "UNKNOWN_FILE", [23] = "UNKNOWN_UPLOAD", [24] = "SUPERSEDED",
  [25] = "SOURCE_CHANGED", [26] = "DIGEST_MISMATCH", [27] = "DIGESTS_DIFFER", [28] = "BAD_FACTS", [29] = "STORE_FULL",
  [30] = "STORE_FAILED", [31] = "CANCELLED", [32] = "NOT_PERMITTED", [33] = "BUSY", [34] = "GOING_AWAY",
  [35] = "NOT_EMPTY", [36] = "INTERNAL", [37] = "HOOK_REFUSED", [40] = "UNAUTHENTICATED", [41] = "FORBIDDEN", [42] = "QUOTA", [43] = "CREDENTIAL_EXPIRED",
}
local SCOPES = { [1] = "block", [2] = "stream", [3] = "connection" }
local PRIORITIES = { [0] = "interactive", [1] = "normal", [2] = "bulk" }
local IF_EXISTS = { [0] = "keep both", [1] = "refuse", [2] = "replace", [3] = "skip", [4] = "update" }
local KINDS = { [0] = "principal", [1] = "files", [2] = "unfinished uploads", [3] = "receipts", [4] = "inbox", [5] = "events" }
local ITEM_KINDS = { [1] = "file", [2] = "folder" }
local YES_NO = { [0] = "no", [1] = "yes" }
local CHECK_STATUS = { [0] = "bad", [1] = "good" }

local FLAGS = {  -- name in protocol.md to bit; which of them a message has is said in its layout
  END = 0x0001, COMMIT = 0x0002, MORE = 0x0001, DISCARD = 0x0001, ANSWER = 0x0001, LEFT = 0x0001, THERE = 0x0002,
  RECURSIVE = 0x0001, EXACT = 0x0002, FOLLOW = 0x0004, B3SUM = 0x0008, LAST = 0x0001, WANTED = 0x0002,
}
local GREASE_FLAG = 0x0800

local STATUSES = { [0] = "stored", [1] = "stored under another name", [2] = "there already", [3] = "left", [4] = "refused" }
local LEFT_OUT = { [1] = "symbolic links", [2] = "special files", [3] = "names that cannot travel", [4] = "unreadable" }

local TLVS = {
  [1] = { name = "MTIME", field = "mtime_ns", kind = "i64", length = 8 },
  [2] = { name = "MODE", field = "mode", kind = "mode", length = 4 },
  [3] = { name = "B3SUM", field = "b3sum", kind = "digest", length = 32 },
  [4] = { name = "ROOT", field = "root", kind = "digest", length = 32 },
  [5] = { name = "HELD_ROOT", field = "held_root", kind = "digest", length = 32 },
  [6] = { name = "IDS", field = "ids", kind = "id", length = 16, many = true },
  [7] = { name = "VERSION", field = "version", kind = "id", length = 16 },
  [8] = { name = "FILE_ID", field = "file_id", kind = "id", length = 16 },
  [9] = { name = "PRIORITY", field = "priority", kind = "u8", length = 1 },
  [10] = { name = "IF_EXISTS", field = "if_exists", kind = "u8", length = 1 },
  [12] = { name = "LEFT_OUT", field = "left_out", kind = "left_out" },
}

-- ---- the layouts ----------------------------------------------------------------------------------------------------
-- Each field is {name, kind}; "?" behind a kind: all ones is "unknown" or "none". `when`: only with that flag.

local FILE_ITEM = {
  { "item.kind", "u8" }, { "filesize", "u64" }, { "mtime_ns", "i64" }, { "mode", "mode" }, { "file_id", "id" },
  { "version", "id" }, { "filename", "string" }, { "filetype", "string" }, tlvs = { 3, 4 },
}
local UPLOAD_ITEM = {
  { "sourceid", "id" }, { "file_id", "id" }, { "filesize", "u64?" }, { "blocknum", "u32?" }, { "position", "u64" },
  { "held_count", "u32" }, { "expires_ms", "u64?" }, { "filename", "string" }, { "filetype", "string" }, tlvs = {},
}
local RECEIPT_ITEM = {
  { "sourceid", "id" }, { "file_id", "id" }, { "root", "digest" }, { "filesize", "u64" }, { "stored_as", "string" },
  tlvs = { 3 },
}
local PRINCIPAL_ITEM = {
  { "principal", "id" }, { "expires_ms", "u64?" }, { "server_time_ms", "u64" }, { "quota", "u64?" }, { "used", "u64?" },
  { "scopes", "flags32" }, { "name", "string" }, tlvs = {},
}
local ITEMS = { [0] = PRINCIPAL_ITEM, [1] = FILE_ITEM, [2] = UPLOAD_ITEM, [3] = RECEIPT_ITEM }

local RECORD = {  -- of FILES
  { "sourceid", "id" }, { "digest", "digest" }, { "filesize", "u32" }, { "mtime_ns", "i64" }, { "mode", "u16" },
  { "record.folder", "u8" }, { "record.filetype", "u8" }, { "record.name_length", "u8" },
}
local STORED_ITEM = {
  { "file_id", "id" }, { "root", "digest" }, { "filesize", "u64" }, { "stored_as", "string" }, tlvs = { 3 },
}
local REFUSAL_ITEM = {
  { "code", "u16" }, { "retryable", "u8" }, { "retry_after_ms", "u32" }, { "current", "u64?" }, { "text", "string" },
}
local OUTCOMES = { STORED_ITEM, STORED_ITEM, STORED_ITEM, REFUSAL_ITEM }  -- by status

local MESSAGES = {
  [0x13] = { name = "GOAWAY", { "code", "u16" }, { "grace_ms", "u32" }, { "retry_after_ms", "u32" },
    { "text", "string" } },
  [0x81] = { name = "HELLO", { "version_lowest", "u16" }, { "version_highest", "u16" }, { "head_length_max", "u16" },
    { "piece_length_max", "u32" }, { "streams_max", "u32" }, { "connection_allowance", "u64" },
    { "stream_allowance", "u64" }, { "undurable_max", "u64" }, { "features", "flags64" }, { "agent", "string" } },
  [0x82] = { name = "AUTH", { "scheme", "u8" }, { "device", "id" }, { "credential", "string" } },
  [0x83] = { name = "OPEN", { "sourceid", "id" }, { "attempt", "u64" }, { "filesize", "u64?" }, { "blocknum", "u32?" },
    { "priority", "u8" }, { "if_exists", "u8" }, { "filename", "string" }, { "filetype", "string" },
    tlvs = { 1, 2, 3, 4, 7, 8 } },
  [0x84] = { name = "OPENED", { "sourceid", "id" }, { "file_id", "id" }, { "attempt", "u64" }, { "position", "u64" },
    { "incarnation", "u64" }, { "expires_ms", "u64?" }, { "held", "runs" }, { "prefixes", "prefixes" }, tlvs = { 5 } },
  [0x85] = { name = "BLOCK", { "sourceid", "id" }, { "filesize", "u64?" }, { "blocknum", "u32?" }, { "blockno", "u32" },
    { "position", "u64" }, { "filename", "string" }, { "filetype", "string" }, { "digest", "digest", when = "END" },
    tlvs = { 1, 2, 9, 10 }, flags = { "END", "COMMIT" }, payload = true },
  [0x86] = { name = "PIECE", { "position", "u64" }, { "digest", "digest", when = "END" },
    flags = { "END", "COMMIT" }, payload = true },
  [0x87] = { name = "ACK", { "position", "u64" }, { "held", "runs" } },
  [0x88] = { name = "CREDIT", { "allowance", "u64" }, { "received", "u64" }, tlvs = { 9 } },
  [0x89] = { name = "HAVE", { "digests", "digests" }, flags = { "MORE" } },
  [0x8A] = { name = "COMMIT", { "sourceid", "id" }, { "root", "digest" }, { "filesize", "u64" }, { "blocknum", "u32" },
    tlvs = { 1, 2, 3 } },
  [0x8B] = { name = "COMMITTED", { "sourceid", "id" }, { "file_id", "id" }, { "root", "digest" }, { "filesize", "u64" },
    { "stored_as", "string" }, tlvs = { 3 }, flags = { "LEFT", "THERE" } },
  [0x8C] = { name = "FETCH", { "file_id", "id" }, { "first", "u64" }, { "fetch_length", "u64?" }, { "version", "id" },
    { "priority", "u8" }, { "held", "runs" }, { "prefixes", "prefixes" }, { "filename", "string" } },
  [0x8D] = { name = "LIST", { "kind", "u8" }, { "limit", "u16" }, { "name", "string" }, { "cursor", "string" },
    tlvs = { 6, 10 }, flags = { "RECURSIVE", "EXACT", "FOLLOW", "B3SUM" } },
  [0x8E] = { name = "REMOVE", { "kind", "u8" }, { "id", "id" }, { "filename", "string" }, flags = { "RECURSIVE" } },
  [0x8F] = { name = "RESULT", { "kind", "u8" }, { "items", "items" }, { "cursor", "string" },
    tlvs = { 12 } },
  [0x90] = { name = "CANCEL", { "reason", "u16" }, { "text", "string" }, flags = { "DISCARD" } },
  [0x91] = { name = "PING", { "opaque", "opaque" }, { "next_s", "u32" }, flags = { "ANSWER" } },
  [0x92] = { name = "ERROR", { "code", "u16" }, { "scope", "u8" }, { "retryable", "u8" }, { "retry_after_ms", "u32" },
    { "blockno", "u32?" }, { "current", "u64?" }, { "text", "string" } },
  [0x93] = { name = "FILES", { "number", "u32" }, { "if_exists", "u8" }, { "folders", "strings" },
    { "filetypes", "strings" }, { "files", "records" }, { "names", "names" }, flags = { "LAST", "WANTED" }, payload = true },
  [0x94] = { name = "STORED", { "number", "u32" }, { "statuses", "statuses" }, { "outcomes", "outcomes" },
    flags = { "LAST" } },
}
local GREASE_TYPES = { [27] = true, [58] = true, [89] = true, [120] = true }

local TYPE_NAMES = {}
for number, layout in pairs(MESSAGES) do TYPE_NAMES[number] = layout.name end
for number in pairs(GREASE_TYPES) do TYPE_NAMES[number] = "GREASE" end

-- ---- fields and expert infos ------------------------------------------------------------------------------------------

local VALUES = {
  code = ERRORS, reason = ERRORS, scope = SCOPES, priority = PRIORITIES, if_exists = IF_EXISTS, kind = KINDS,
  ["item.kind"] = ITEM_KINDS, retryable = YES_NO,
}
local MAKE = {
  u8 = function(name, label) return ProtoField.uint8(name, label, base.DEC, VALUES[label]) end,
  u16 = function(name, label) return ProtoField.uint16(name, label, base.DEC, VALUES[label]) end,
  u32 = function(name, label) return ProtoField.uint32(name, label, base.DEC) end,
  u64 = function(name, label) return ProtoField.uint64(name, label, base.DEC) end,
  flags64 = function(name, label) return ProtoField.uint64(name, label, base.HEX) end,
  i64 = function(name, label) return ProtoField.int64(name, label, base.DEC) end,
  flags32 = function(name, label) return ProtoField.uint32(name, label, base.HEX) end,
  mode = function(name, label) return ProtoField.uint32(name, label, base.OCT) end,
  id = function(name, label) return ProtoField.bytes(name, label) end,
  string = function(name, label) return ProtoField.string(name, label) end,
  left_out = function(name, label) return ProtoField.uint8(name, label, base.DEC, LEFT_OUT) end,
  list = function(name, label) return ProtoField.uint16(name, label, base.DEC) end,
}
MAKE.digest, MAKE.opaque, MAKE.names = MAKE.id, MAKE.id, MAKE.string
MAKE.strings, MAKE.records, MAKE.statuses, MAKE.outcomes = MAKE.list, MAKE.list, MAKE.list, MAKE.list
MAKE.runs, MAKE.prefixes, MAKE.digests, MAKE.items = MAKE.list, MAKE.list, MAKE.list, MAKE.list

local fields = {}

local function declare(name, kind)
  if fields[name] == nil then
    fields[name] = MAKE[(kind:gsub("%?", ""))]("blockproto." .. name, name)
  end
end

local f = {  -- header, and what stands in no layout
  preface = ProtoField.bytes("blockproto.preface", "preface"),
  length = ProtoField.uint24("blockproto.length", "length", base.DEC),
  type = ProtoField.uint8("blockproto.type", "type", base.HEX, TYPE_NAMES),
  flags = ProtoField.uint16("blockproto.flags", "flags", base.HEX),
  head_length = ProtoField.uint16("blockproto.head_length", "head_length", base.DEC),
  stream = ProtoField.uint32("blockproto.stream", "stream", base.DEC),
  check = ProtoField.uint32("blockproto.check", "check", base.HEX),
  check_status = ProtoField.uint8("blockproto.check.status", "check is", base.DEC, CHECK_STATUS),
  payload = ProtoField.bytes("blockproto.payload", "payload"),
  payload_length = ProtoField.uint32("blockproto.payload_length", "payload_length", base.DEC),
  unknown = ProtoField.bytes("blockproto.unknown", "head of an unknown type"),
  noise = ProtoField.bytes("blockproto.noise", "no frame"),
  stream_name = ProtoField.string("blockproto.stream.name", "the stream is about"),
  grease_flag = ProtoField.bool("blockproto.flags.grease", "GREASE", 16, nil, GREASE_FLAG),
  run = ProtoField.string("blockproto.run", "run"),
  run_first = ProtoField.uint32("blockproto.run.first", "first", base.DEC),
  run_count = ProtoField.uint32("blockproto.run.count", "count", base.DEC),
  prefix = ProtoField.string("blockproto.prefix", "prefix"),
  prefix_blockno = ProtoField.uint32("blockproto.prefix.blockno", "blockno", base.DEC),
  prefix_bytes = ProtoField.uint32("blockproto.prefix.bytes", "bytes", base.DEC),
  have = ProtoField.string("blockproto.have", "block"),
  have_blockno = ProtoField.uint32("blockproto.have.blockno", "blockno", base.DEC),
  have_digest = ProtoField.bytes("blockproto.have.digest", "digest"),
  left_out_count = ProtoField.uint32("blockproto.left_out.count", "count", base.DEC),
  left_out_name = ProtoField.string("blockproto.left_out.name", "name", base.UNICODE),
  folder = ProtoField.string("blockproto.folder", "folder", base.UNICODE),
  filetype = ProtoField.string("blockproto.frame_filetype", "filetype", base.UNICODE),
  record = ProtoField.string("blockproto.record", "file"),
  status = ProtoField.uint8("blockproto.status", "status", base.DEC, STATUSES),
  item = ProtoField.string("blockproto.item", "item"),
  item_length = ProtoField.uint16("blockproto.item.length", "item length", base.DEC),
  tlv = ProtoField.string("blockproto.tlv", "TLV"),
  tlv_type = ProtoField.uint16("blockproto.tlv.type", "TLV type", base.DEC),
  tlv_length = ProtoField.uint16("blockproto.tlv.length", "TLV length", base.DEC),
  tlv_value = ProtoField.bytes("blockproto.tlv.value", "TLV value"),
}
local flag_fields = {}
for name, bit in pairs(FLAGS) do
  flag_fields[name] = ProtoField.bool("blockproto.flags." .. name:lower(), name, 16, nil, bit)
end

local function declare_all()
  for _, layout in pairs(MESSAGES) do
    for _, field in ipairs(layout) do declare(field[1], field[2]) end
  end
  for _, layout in pairs(ITEMS) do
    for _, field in ipairs(layout) do declare(field[1], field[2]) end
  end
  for _, tlv in pairs(TLVS) do declare(tlv.field, tlv.kind) end
  for _, layout in ipairs({ STORED_ITEM, REFUSAL_ITEM, RECORD }) do
    for _, field in ipairs(layout) do declare(field[1], field[2]) end
  end
  local all = {}
  for _, group in ipairs({ f, flag_fields, fields }) do
    for _, field in pairs(group) do all[#all + 1] = field end
  end
  bp.fields = all
end
declare_all()

local e = {
  bad_check = ProtoExpert.new("blockproto.expert.bad_check", "the check is not that of header and head",
    expert.group.CHECKSUM, expert.severity.ERROR),
  malformed = ProtoExpert.new("blockproto.expert.malformed", "the head does not follow its layout",
    expert.group.MALFORMED, expert.severity.ERROR),
  not_understood = ProtoExpert.new("blockproto.expert.not_understood", "must be understood, and version 1 does not know it",
    expert.group.UNDECODED, expert.severity.WARN),
  skipped = ProtoExpert.new("blockproto.expert.skipped", "unknown, and skipped by everybody",
    expert.group.UNDECODED, expert.severity.CHAT),
  refused = ProtoExpert.new("blockproto.expert.error", "ERROR", expert.group.RESPONSE_CODE, expert.severity.WARN),
  noise = ProtoExpert.new("blockproto.expert.noise", "this is no frame", expert.group.MALFORMED, expert.severity.ERROR),
  cut = ProtoExpert.new("blockproto.expert.cut", "the capture holds only a part of this frame",
    expert.group.UNDECODED, expert.severity.NOTE),
}
local experts = {}
for _, one in pairs(e) do experts[#experts + 1] = one end
bp.experts = experts

-- ---- CRC-32 ---------------------------------------------------------------------------------------------------------
-- Wireshark's Lua is 5.2 (bit32), later 5.4 (an operator that 5.2 cannot parse); both have what is needed.

local xor = bit32 and bit32.bxor or load("return function(a, b) return a ~ b end")()

local CRC_TABLE = {}
for byte = 0, 255 do
  local crc = byte
  for _ = 1, 8 do
    local half = (crc - crc % 2) / 2
    crc = crc % 2 == 1 and xor(0xEDB88320, math.floor(half)) or math.floor(half)
  end
  CRC_TABLE[byte] = crc
end

local function crc32(bytes)
  local crc = 0xFFFFFFFF
  for index = 1, #bytes do
    crc = xor(math.floor(crc / 256), CRC_TABLE[xor(crc % 256, bytes:byte(index))])
  end
  return xor(crc, 0xFFFFFFFF)
end

-- ---- reading a head -------------------------------------------------------------------------------------------------

local SHORT = {}  -- raised by Reader:take, and by nothing else

local Reader = {}
Reader.__index = Reader

-- The bytes from `from` up to, not including, `to` of `tvb`; never more than were captured.
function Reader.new(tvb, from, to)
  return setmetatable({ tvb = tvb, at = from, to = math.min(to, tvb:len()) }, Reader)
end

function Reader:left() return self.to - self.at end

function Reader:take(length)
  if length > self:left() or length == 0 then error(SHORT) end
  local part = self.tvb(self.at, length)
  self.at = self.at + length
  return part
end

local CHARACTERS = {  -- what may be shown as it is: printable ASCII, and UTF-8 but for C1 controls and surrogates
  "^[\32-\126]", "^\194[\160-\191]", "^[\195-\223][\128-\191]", "^\224[\160-\191][\128-\191]",
  "^[\225-\236\238\239][\128-\191][\128-\191]", "^\237[\128-\159][\128-\191]",
  "^\240[\144-\191][\128-\191][\128-\191]", "^[\241-\243][\128-\191][\128-\191][\128-\191]",
  "^\244[\128-\143][\128-\191][\128-\191]",
}
local TURNS = { "^\226\128[\142\143\168-\174]", "^\226\129[\166-\169]" }  -- directions and lines
local SHOWN_MAX = 120

local function first_match(patterns, text, at)
  for _, pattern in ipairs(patterns) do
    local found = text:match(pattern, at)
    if found then return found end
  end
  return nil
end

-- Text as it can stand in a column: what is no text, or a terminal would obey, is shown as \x1b.
local function printable(text)
  local shown, at = {}, 1
  while at <= #text do
    if #shown == SHOWN_MAX then return table.concat(shown) .. "..." end
    local character = first_match(CHARACTERS, text, at)
    if character == nil or first_match(TURNS, text, at) then
      shown[#shown + 1] = string.format("\\x%02x", text:byte(at))
      at = at + 1
    else
      shown[#shown + 1] = character
      at = at + #character
    end
  end
  return table.concat(shown)
end

local function utc(seconds)
  if seconds < 0 or seconds > 253402300799 then return "" end
  return os.date("! (%Y-%m-%d %H:%M:%S UTC)", math.floor(seconds))
end

local function number(length)
  return function(reader, tree, field, unknown)
    local part = reader:take(length)
    local item = tree:add(field, part)
    local value = part:uint()
    if unknown and value == 2 ^ (8 * length) - 1 then
      item:append_text(" (unknown or none)")
      return nil
    end
    return value
  end
end

local READ = { u8 = number(1), u16 = number(2), u32 = number(4), mode = number(4), flags32 = number(4) }

function READ.u64(reader, tree, field, unknown)
  local part = reader:take(8)
  local item = tree:add(field, part)
  local value = part:uint64()
  if part(0, 1):uint() >= 0x80 then
    if unknown and part:bytes():tohex():upper() == "FFFFFFFFFFFFFFFF" then
      item:append_text(" (unknown or none)")
      return nil
    end
    item:add_proto_expert_info(e.malformed, "a u64 is less than 2^63 (BP1-FRM-015)")
  end
  if field == fields.expires_ms or field == fields.server_time_ms then item:append_text(utc(value:tonumber() / 1000)) end
  return tostring(value)
end

READ.flags64 = READ.u64

function READ.i64(reader, tree, field)
  local part = reader:take(8)
  local value = part:int64()
  tree:add(field, part):append_text(utc(value:tonumber() / 1e9))
  return tostring(value)
end

local function raw(length)
  return function(reader, tree, field)
    local part = reader:take(length)
    local item = tree:add(field, part)
    local hex = part:bytes():tohex():lower()
    if hex:find("[^0]") == nil then item:append_text(" (zeros)") end
    return hex
  end
end

READ.id, READ.digest, READ.opaque = raw(16), raw(32), raw(8)

function READ.string(reader, tree, field)
  local length = reader:take(2)
  if length:uint() == 0 then
    tree:add(field, length, "")
    return ""
  end
  local part = reader:take(length:uint())
  tree:add_packet_field(field, part, ENC_UTF_8 + ENC_NA)
  return part:raw()
end

-- A count, then as many pairs; `show` adds one pair to the tree and says it in a few words.
local function pairs_of(show)
  return function(reader, tree, field)
    local count = reader:take(2)
    local branch = tree:add(field, count)
    local said = {}
    for _ = 1, count:uint() do
      local text = show(reader, branch)
      if #said < 4 then said[#said + 1] = text elseif #said == 4 then said[5] = "..." end
    end
    return { count = count:uint(), text = table.concat(said, " ") }
  end
end

local function run_text(first, count)
  return count == 1 and tostring(first) or string.format("%d-%d", first, first + count - 1)
end

READ.runs = pairs_of(function(reader, tree)
  local part = reader:take(8)
  local first, count = part(0, 4), part(4, 4)
  local text = run_text(first:uint(), count:uint())
  local branch = tree:add(f.run, part, text)
  branch:add(f.run_first, first)
  branch:add(f.run_count, count)
  return text
end)

READ.prefixes = pairs_of(function(reader, tree)
  local part = reader:take(8)
  local blockno, bytes = part(0, 4), part(4, 4)
  local text = string.format("%d: %d bytes", blockno:uint(), bytes:uint())
  local branch = tree:add(f.prefix, part, text)
  branch:add(f.prefix_blockno, blockno)
  branch:add(f.prefix_bytes, bytes)
  return text
end)

READ.digests = pairs_of(function(reader, tree)
  local part = reader:take(36)
  local branch = tree:add(f.have, part, tostring(part(0, 4):uint()))
  branch:add(f.have_blockno, part(0, 4))
  branch:add(f.have_digest, part(4, 32))
  return tostring(part(0, 4):uint())
end)

-- One group of LEFT_OUT: the reason, how many, and some of their names.
function READ.left_out(reader, tree, field)
  local branch = tree:add(field, reader:take(1))
  branch:add(f.left_out_count, reader:take(4))
  for _ = 1, reader:take(2):uint() do READ.string(reader, branch, f.left_out_name) end
end

local read_layout  -- for items, which are heads of their own

function READ.items(reader, tree, field, _, values)
  local count = reader:take(2)
  local branch = tree:add(field, count)
  local layout = ITEMS[values.kind]
  for index = 1, count:uint() do
    local length = reader:take(2)
    local start = reader.at
    local whole = length:uint() > 0 and reader:take(length:uint()) or length
    local item = branch:add(f.item, whole, tostring(index))
    item:add(f.item_length, length)
    if layout then
      local found = read_layout(Reader.new(reader.tvb, start, reader.at), item, layout, 0)
      item:append_text(": " .. printable(found.filename or found.stored_as or found.name or ""))
    end
  end
  return count:uint()
end

function READ.strings(reader, tree, field)
  local count = reader:take(2)
  local branch = tree:add(field, count)
  local one = field == fields.folders and f.folder or f.filetype
  for _ = 1, count:uint() do READ.string(reader, branch, one) end
  return count:uint()
end

-- The records of FILES; returns how many bytes of `names` each has.
function READ.records(reader, tree, field)
  local count = reader:take(2)
  local branch = tree:add(field, count)
  local lengths = {}
  for index = 1, count:uint() do
    local start = reader.at
    local item = branch:add(f.record, reader.tvb(start, math.min(65, reader:left())), tostring(index))
    local record = Reader.new(reader.tvb, start, start + math.min(65, reader:left()))
    local found = read_layout(record, item, RECORD, 0)
    lengths[index] = found["record.name_length"]
    reader:take(65)
  end
  return lengths
end

function READ.names(reader, tree, field, _, values)
  for _, length in ipairs(values.files) do
    if length == 0 then
      tree:add(field, reader.tvb(reader.at, 0), "")
    else
      tree:add_packet_field(field, reader:take(length), ENC_UTF_8 + ENC_NA)
    end
  end
end

function READ.statuses(reader, tree, field)
  local count = reader:take(2)
  local branch = tree:add(field, count)
  local statuses = {}
  for index = 1, count:uint() do
    local part = reader:take(1)
    branch:add(f.status, part)
    statuses[index] = part:uint()
  end
  return statuses
end

function READ.outcomes(reader, tree, field, _, values)
  local count = reader:take(2)
  local branch = tree:add(field, count)
  for _, status in ipairs(values.statuses) do
    if status ~= 0 then
      local length = reader:take(2)
      local start = reader.at
      local whole = length:uint() > 0 and reader:take(length:uint()) or length
      local item = branch:add(f.item, whole, STATUSES[status] or tostring(status))
      item:add(f.item_length, length)
      local layout = OUTCOMES[status]
      if layout then read_layout(Reader.new(reader.tvb, start, reader.at), item, layout, 0) end
    end
  end
  return count:uint()
end

local function read_tlv(reader, tree, known, last)
  local start = reader.at
  local number_part, length_part = reader:take(2), reader:take(2)
  local kind, length = number_part:uint(), length_part:uint()
  local tlv = known[kind] and TLVS[kind] or nil
  if length > reader:left() then error(SHORT) end
  local item = tree:add(f.tlv, reader.tvb(start, 4 + length), tlv and tlv.name or string.format("unknown, %d", kind))
  item:add(f.tlv_type, number_part)
  item:add(f.tlv_length, length_part)
  if kind <= last then
    item:add_proto_expert_info(e.malformed, "TLVs stand in strictly rising order of their types (BP1-FRM-014)")
  end
  if tlv and not tlv.length then
    local start_of_value = reader.at
    if length > 0 then reader:take(length) end
    local groups = Reader.new(reader.tvb, start_of_value, reader.at)
    while groups:left() > 0 do READ[tlv.kind](groups, item, fields[tlv.field]) end
    return kind
  end
  if tlv and (tlv.many and length % tlv.length == 0 or length == tlv.length) then
    for _ = 1, length / tlv.length do READ[tlv.kind](reader, item, fields[tlv.field]) end
    return kind
  end
  if length > 0 then item:add(f.tlv_value, reader:take(length)) end
  if tlv then
    item:add_proto_expert_info(e.malformed, "not the length of this TLV (BP1-FRM-014)")
  elseif kind >= MUST_UNDERSTAND_TLV then
    item:add_proto_expert_info(e.not_understood)
  else
    item:append_text(kind % 31 == 27 and " (GREASE)" or "")
    item:add_proto_expert_info(e.skipped)
  end
  return kind
end

-- Read fields, strings, lists and TLVs to the end of `reader`; returns the values by name, to tell them in a line.
function read_layout(reader, tree, layout, flags)
  local values = {}
  for _, field in ipairs(layout) do
    local name, kind = field[1], field[2]
    if field.when == nil or flags % (2 * FLAGS[field.when]) >= FLAGS[field.when] then
      local plain, unknown = kind:gsub("%?", "")
      values[name] = READ[plain](reader, tree, fields[name], unknown == 1, values)
    end
  end
  local known, last = {}, -1
  for _, kind in ipairs(layout.tlvs or {}) do known[kind] = true end
  while reader:left() > 0 do last = read_tlv(reader, tree, known, last) end
  return values
end

-- ---- one line for each message -----------------------------------------------------------------------------------------

local function held(list) return list and list.count > 0 and " held " .. list.text or "" end

local SAY = {
  AUTH = function(v) return string.format("scheme %d", v.scheme) end,
  GOAWAY = function(v) return string.format("%s, closes in %d ms", ERRORS[v.code] or v.code, v.grace_ms) end,
  HELLO = function(v) return string.format("versions %d to %d, %s", v.version_lowest, v.version_highest, printable(v.agent)) end,
  OPEN = function(v) return string.format("%s, %s bytes, attempt %s", printable(v.filename), v.filesize or "?", v.attempt) end,
  OPENED = function(v)
    local prefixes = v.prefixes.count > 0 and " prefixes " .. v.prefixes.text or ""
    return "position " .. v.position .. held(v.held) .. prefixes
  end,
  BLOCK = function(v) return string.format("%d of %s, %s", v.blockno, v.blocknum or "?", printable(v.filename)) end,
  PIECE = function(v) return "at " .. v.position end,
  ACK = function(v) return "position " .. v.position .. held(v.held) end,
  CREDIT = function(v) return string.format("allowance %s, received %s", v.allowance, v.received) end,
  HAVE = function(v) return string.format("%d digests", v.digests.count) end,
  COMMIT = function(v) return v.filesize .. " bytes" end,
  COMMITTED = function(v) return string.format("%s, %s bytes", printable(v.stored_as), v.filesize) end,
  FETCH = function(v)
    local what = v.filename ~= "" and printable(v.filename) or v.file_id
    return string.format("%s from %s, %s bytes", what, v.first, v.fetch_length or "all")
  end,
  LIST = function(v) return string.format("%s %s", KINDS[v.kind] or v.kind, printable(v.name)) end,
  REMOVE = function(v) return v.filename ~= "" and printable(v.filename) or v.id end,
  RESULT = function(v) return string.format("%d items%s", v.items, v.cursor ~= "" and ", and more" or "") end,
  CANCEL = function(v) return string.format("%s %s", ERRORS[v.reason] or v.reason, printable(v.text)) end,
  FILES = function(v) return string.format("%d: %d files", v.number, #v.files) end,
  STORED = function(v)
    local others = 0
    for _, status in ipairs(v.statuses) do others = others + (status == 0 and 0 or 1) end
    return string.format("%d: %d files%s", v.number, #v.statuses, others > 0 and ", " .. others .. " not as asked" or "")
  end,
  PING = function(v) return string.format("next_s %d", v.next_s) end,
  ERROR = function(v)
    local text = v.text ~= "" and ": " .. printable(v.text) or ""
    return string.format("%s (%s)%s", ERRORS[v.code] or v.code, SCOPES[v.scope] or v.scope, text)
  end,
}

local names = {}  -- what a stream is about: the first name said on it, by TCP stream and stream id
local speaking = {}  -- by TCP stream: the packet from which on it is ours
local tcp_stream = Field.new("tcp.stream")

function bp.init() names, speaking = {}, {} end

local function name_of(stream, values)
  local connection = tcp_stream()
  if connection == nil or stream == 0 then return nil end
  local key = tostring(connection.value) .. ":" .. stream
  local said = values and (values.filename or values.name)
  if names[key] == nil and said ~= nil and said ~= "" then names[key] = printable(said) end
  return names[key]
end

_G.blockproto = { ERRORS = ERRORS, printable = printable }  -- for blockproto_dialects.lua, which is loaded after this

-- ---- frames ------------------------------------------------------------------------------------------------------------

-- A packet can hold several frames, and its dissection can come in several calls: what we said last is what the column
-- ends with, unless this is the packet's first frame.
local said = { packet = 0, text = "" }

local function say(pinfo, text)
  pinfo.cols.protocol = SHORT_NAME
  if said.packet == pinfo.number and tostring(pinfo.cols.info):sub(-#said.text) == said.text then
    pinfo.cols.info:append("; " .. text)
  else
    pinfo.cols.info = text
  end
  said = { packet = pinfo.number, text = text }
end

local function add_flags(tree, part, layout)
  local value = part:uint()
  local branch = tree:add(f.flags, part)
  local known, said = 0, ""
  for _, name in ipairs(layout and layout.flags or {}) do
    branch:add(flag_fields[name], part)
    known = known + FLAGS[name]
    if value % (2 * FLAGS[name]) >= FLAGS[name] then said = said .. " " .. name end
  end
  branch:append_text(said)
  if value % (2 * GREASE_FLAG) >= GREASE_FLAG then branch:add(f.grease_flag, part) end
  if layout and value >= 0x1000 then
    branch:add_proto_expert_info(e.not_understood, "one of the flags 12 to 15 (BP1-EXT-004)")
  end
  return value, said
end

local function check_of(tvb, head_length)
  return crc32(tvb:raw(0, 12) .. (head_length > 0 and tvb:raw(HEADER_LENGTH, head_length) or ""))
end

local function add_check(tree, tvb, head_length)
  local item = tree:add(f.check, tvb(12, 4))
  if not bp.prefs.check or tvb:len() < HEADER_LENGTH + head_length then return "" end
  local right = check_of(tvb, head_length)
  local good = right == tvb(12, 4):uint()
  tree:add(f.check_status, tvb(12, 4), good and 1 or 0):set_generated()
  if good then return "" end
  item:append_text(string.format(", should be 0x%08x", right))
  item:add_proto_expert_info(e.bad_check)
  return " [bad check]"
end

-- The head of a known type; returns its values, or nil when it is malformed.
local function add_head(tree, tvb, layout, flags, head_length)
  local reader = Reader.new(tvb, HEADER_LENGTH, HEADER_LENGTH + head_length)
  local fine, found = pcall(read_layout, reader, tree, layout, flags)
  if fine then return found end
  if found ~= SHORT then error(found, 0) end
  local captured = tvb:len() >= HEADER_LENGTH + head_length
  tree:add_proto_expert_info(captured and e.malformed or e.cut)
  return nil
end

local function add_payload(tree, tvb, head_length, length, layout)
  local count = length - head_length
  if not layout or not (layout.payload or count > 0) then return "" end
  tree:add(f.payload_length, tvb(0, 3), count):set_generated()
  local captured = math.min(count, tvb:len() - HEADER_LENGTH - head_length)
  if captured > 0 then tree:add(f.payload, tvb(HEADER_LENGTH + head_length, captured)) end
  if count > 0 and not layout.payload then
    tree:add_proto_expert_info(e.malformed, "only BLOCK, PIECE and FILES have a payload (BP1-FRM-007)")
  end
  return string.format(" +%d", count)
end

local function add_unknown(tree, tvb, kind, head_length, pinfo)
  local captured = math.min(head_length, tvb:len() - HEADER_LENGTH)
  if captured > 0 then tree:add(f.unknown, tvb(HEADER_LENGTH, captured)) end
  local must = kind >= MUST_UNDERSTAND_TYPE
  tree:add_proto_expert_info(must and e.not_understood or e.skipped)
  say(pinfo, TYPE_NAMES[kind] or string.format("type 0x%02x", kind))
end

local function add_header(tree, tvb, kind)
  tree:add(f.length, tvb(0, 3))
  tree:add(f.type, tvb(3, 1))
  local flags, flags_said = add_flags(tree, tvb(4, 2), MESSAGES[kind])
  local head_length = tvb(6, 2):uint()
  tree:add(f.head_length, tvb(6, 2))
  tree:add(f.stream, tvb(8, 4))
  return flags, flags_said, head_length
end

local function frame(tvb, pinfo, root)
  if tvb:len() < HEADER_LENGTH then return tvb:len() end
  local length, kind, stream = tvb(0, 3):uint(), tvb(3, 1):uint(), tvb(8, 4):uint()
  local layout = MESSAGES[kind]
  local tree = root:add(bp, tvb(), "blockproto " .. (TYPE_NAMES[kind] or string.format("type 0x%02x", kind)))
  local flags, flags_said, head_length = add_header(tree, tvb, kind)
  if head_length > length then
    tree:add_proto_expert_info(e.malformed, "head_length is greater than length (BP1-FRM-005)")
    say(pinfo, string.format("%d %s [malformed]", stream, TYPE_NAMES[kind] or kind))
    return tvb:len()
  end
  local damage = add_check(tree, tvb, head_length)
  if not layout then
    add_unknown(tree, tvb, kind, head_length, pinfo)
    return tvb:len()
  end
  local values = add_head(tree, tvb, layout, flags, head_length)
  local payload = add_payload(tree, tvb, head_length, length, layout)
  local line = values and SAY[layout.name](values) or "[malformed]"
  local about = name_of(stream, values)
  if about then tree:add(f.stream_name, tvb(8, 4), about):set_generated() end
  if about and not (values and (values.filename or values.name)) then line = line .. " (" .. about .. ")" end
  if values and layout.name == "ERROR" then tree:add_proto_expert_info(e.refused, line) end
  tree:append_text(string.format(", stream %d: %s", stream, line))
  say(pinfo, string.format("%d %s%s %s%s%s", stream, layout.name, flags_said, line, payload, damage))
  return tvb:len()
end

-- ---- the byte stream ---------------------------------------------------------------------------------------------------

local function is_preface(tvb, offset)
  return tvb:len() - offset >= #PREFACE and tvb:raw(offset, #PREFACE) == PREFACE
end

-- Whether a frame could begin at `offset`, where at least 8 bytes are.
local function is_frame(tvb, offset)
  local length, kind = tvb(offset, 3):uint(), tvb(offset + 3, 1):uint()
  if MESSAGES[kind] then return length <= HEAD_AND_PAYLOAD_MAX end
  return length <= UNKNOWN_LENGTH_MAX
end

local function length_of(tvb, _, offset)
  if is_preface(tvb, offset) then return #PREFACE end
  if is_frame(tvb, offset) then return HEADER_LENGTH + tvb(offset, 3):uint() end
  return tvb:len() - offset
end

local function dissect(tvb, pinfo, root)
  if is_preface(tvb, 0) then
    root:add(bp, tvb(), "blockproto preface"):add(f.preface, tvb())
    say(pinfo, "preface")
    return tvb:len()
  end
  if tvb:len() >= 8 and not is_frame(tvb, 0) then
    local tree = root:add(bp, tvb(), "blockproto: no frame")
    tree:add(f.noise, tvb())
    tree:add_proto_expert_info(e.noise)
    say(pinfo, "no frame")
    return tvb:len()
  end
  return frame(tvb, pinfo, root)
end

-- Whether these bytes alone tell that this is blockproto: they begin like the preface, or with a frame whose check is right.
local function is_telling(tvb)
  local begins = math.min(tvb:len(), #PREFACE)
  if tvb:raw(0, begins) == PREFACE:sub(1, begins) then return true end
  if tvb:len() < HEADER_LENGTH or not is_frame(tvb, 0) then return false end
  local head_length = tvb(6, 2):uint()
  return head_length <= tvb:len() - HEADER_LENGTH and check_of(tvb, head_length) == tvb(12, 4):uint()
end

-- Called directly, not as a Dissector object, which would take the heuristic's right to put segments together.
local function dissect_stream(tvb, pinfo, root)
  local connection = tcp_stream()
  local key = connection and tostring(connection.value) or ""
  if speaking[key] == nil and is_telling(tvb) then speaking[key] = pinfo.number end
  if speaking[key] == nil or pinfo.number < speaking[key] then return 0 end  -- let others try
  dissect_tcp_pdus(tvb, root, #PREFACE, length_of, dissect)
  return tvb:len()
end

bp.dissector = dissect_stream

DissectorTable.get("tcp.port"):add(PORT, bp)
DissectorTable.get("tls.alpn"):add(ALPN, bp)

bp:register_heuristic("tcp", function(tvb, pinfo, root)
  if not is_preface(tvb, 0) then return false end
  pinfo.conversation = bp
  dissect_stream(tvb, pinfo, root)
  return true
end)
