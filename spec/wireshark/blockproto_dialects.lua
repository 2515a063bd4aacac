-- The two older dialects of dialects.md for Wireshark and tshark: the line and the answer of sourceid, the headers and
-- replies of struct82. Load it after blockproto.lua; README.md beside this file says how.
--
-- A connection is recognised by its first bytes (chapter DIA), and only there: what a capture that began later holds of
-- these dialects cannot be told from other bytes.

local ERRORS, printable = blockproto.ERRORS, blockproto.printable

local bpd = Proto("blockproto_dialect", "blockproto, an older dialect")

local BLOCK_LENGTH = 1048576
local FIRST_BYTES = 84
local LINE_MAX = 4096
local NAME_LENGTH, TYPE_LENGTH, REPLY_LENGTH, STORED_AS_LENGTH = 50, 20, 48, 256
local SHORT_NAME = "BP dialect"

local f = {
  dialect = ProtoField.string("blockproto_dialect.dialect", "dialect"),
  line = ProtoField.string("blockproto_dialect.line", "line"),
  filename = ProtoField.string("blockproto_dialect.filename", "filename"),
  filetype = ProtoField.string("blockproto_dialect.filetype", "filetype"),
  filesize = ProtoField.uint64("blockproto_dialect.filesize", "filesize", base.DEC),
  sourceid = ProtoField.string("blockproto_dialect.sourceid", "sourceid"),
  position = ProtoField.uint64("blockproto_dialect.position", "position", base.DEC),
  durable = ProtoField.uint64("blockproto_dialect.durable", "durable", base.DEC),
  error = ProtoField.int32("blockproto_dialect.error", "error", base.DEC, ERRORS),
  text = ProtoField.string("blockproto_dialect.text", "text"),
  bytes = ProtoField.bytes("blockproto_dialect.bytes", "bytes of the file"),
  form = ProtoField.string("blockproto_dialect.form", "form"),
  blocknum = ProtoField.int32("blockproto_dialect.blocknum", "blocknum", base.DEC),
  blockno = ProtoField.int32("blockproto_dialect.blockno", "blockno", base.DEC),
  numbering = ProtoField.string("blockproto_dialect.numbering", "numbered"),
  held = ProtoField.int32("blockproto_dialect.held", "held", base.DEC),
  complete = ProtoField.int32("blockproto_dialect.complete", "complete", base.DEC),
  digest = ProtoField.bytes("blockproto_dialect.digest", "digest"),
  bitmap = ProtoField.bytes("blockproto_dialect.bitmap", "bitmap"),
  stored_as = ProtoField.string("blockproto_dialect.stored_as", "stored_as"),
}
local all = {}
for _, field in pairs(f) do all[#all + 1] = field end
bpd.fields = all

local e = {
  guessed = ProtoExpert.new("blockproto_dialect.expert.guessed", "numbered from 0, or from 1? taken for 0 (S82-018)",
    expert.group.ASSUMPTION, expert.severity.NOTE),
  refused = ProtoExpert.new("blockproto_dialect.expert.error", "refused", expert.group.RESPONSE_CODE, expert.severity.WARN),
  noise = ProtoExpert.new("blockproto_dialect.expert.noise", "this is no header in the form of the connection",
    expert.group.MALFORMED, expert.severity.ERROR),
}
bpd.experts = { e.guessed, e.refused, e.noise }

local connections = {}  -- by TCP stream: what its first bytes told, and what was learnt since
local numbered_from = {}  -- 0 or 1, by what an upload of struct82 is known by (S82-012), once it is settled (S82-015)
local tcp_stream = Field.new("tcp.stream")

function bpd.init() connections, numbered_from = {}, {} end

local function say(pinfo, text)
  pinfo.cols.protocol = SHORT_NAME
  pinfo.cols.info = text
end

local function from_client(connection, pinfo) return pinfo.src_port == connection.client_port end

local function unsigned(digits)
  local number = tonumber(digits) or 0
  return UInt64(number % 4294967296, math.floor(number / 4294967296))
end

-- ---- sourceid -------------------------------------------------------------------------------------------------------

-- The length of the first line with its end, or nil if it has not ended (SID-003).
local function line_length(text)
  local _, at = text:find("\n", 1, true)
  if at then return at end
  if text:find("[Ss][Oo][Uu][Rr][Cc][Ee][Ii][Dd]=%d*%%$") or text:find("[Ss][Oo][Uu][Rr][Cc][Ee][Ii][Dd]=%d*/r/n$") then
    return #text
  end
  return nil
end

-- Whether the beginning of a line says what every request of this dialect must (SID-007).
local function is_request(text)
  local line = text:sub(1, FIRST_BYTES):match("^[^%c]*"):lower()
  return line:find("content%-length%s*=") ~= nil and line:find("filenn?ame%s*=") ~= nil
end

local FIELDS = { sourceid = "sourceid", position = "position", durable = "durable", ["content-length"] = "filesize",
  error = "error", text = "text" }

-- Fields by name; a filename goes on to the next field that counts (SID-005).
local function add_fields(tree, part, line)
  local found = {}
  for key, value in (";" .. line):gmatch(";%s*([%w%-]+)%s*=%s*([^;%c]*)") do
    local name = FIELDS[key:lower()]
    if name and (found[name] == nil or name == "sourceid") then found[name] = value end
  end
  local name = line:match("[Ff][Ii][Ll][Ee][Nn][Nn]?[Aa][Mm][Ee]%s*=%s*([^%c]*)")
  if name then
    local lower = name:lower()
    local ends = math.min(lower:find(";%s*content%-length%s*=") or #name + 1, lower:find(";%s*sourceid%s*=") or #name + 1)
    found.filename = name:sub(1, ends - 1)
  end
  for _, key in ipairs({ "filename", "sourceid", "text" }) do
    if found[key] then tree:add(f[key], part, printable(found[key])) end
  end
  for _, key in ipairs({ "filesize", "position", "durable" }) do
    if found[key] and found[key] ~= "" then tree:add(f[key], part, unsigned(found[key])) end
  end
  if found.error then
    tree:add(f.error, part, tonumber(found.error) or 0)
    tree:add_proto_expert_info(e.refused)
  end
  return found
end

local function told(found, asked)
  if asked then
    return string.format("sourceid: %s, %s bytes", printable(found.filename or "?"), found.filesize or "?")
  end
  if found.error then return "sourceid: ERROR " .. (ERRORS[tonumber(found.error)] or found.error) end
  return "sourceid: go on at " .. (found.position or "?")
end

local function dissect_sourceid(tvb, pinfo, tree, connection)
  local asked = from_client(connection, pinfo)
  local side = asked and "request_at" or "answer_at"
  if connection[side] and pinfo.number > connection[side] then
    tree:add(f.bytes, tvb())
    say(pinfo, string.format("sourceid: %d bytes of the file", tvb:len()))
    return
  end
  local length = line_length(tvb:raw(0, math.min(tvb:len(), LINE_MAX)))
  if length == nil and tvb:len() < LINE_MAX then
    pinfo.desegment_len = DESEGMENT_ONE_MORE_SEGMENT
    return
  end
  connection[side] = pinfo.number
  local part = tvb(0, length or tvb:len())
  tree:add(f.line, part, printable(part:raw()))
  local line = told(add_fields(tree, part, part:raw()), asked)
  if tvb:len() > part:len() then
    tree:add(f.bytes, tvb(part:len()))
    line = string.format("%s; %d bytes of the file", line, tvb:len() - part:len())
  end
  say(pinfo, line)
end

-- ---- struct82 -------------------------------------------------------------------------------------------------------

local FORMS = {  -- in the order in which they are tried (S82-003)
  { name = "packed, little endian", length = 82, little = true }, { name = "packed, big endian", length = 82 },
  { name = "aligned, little endian", length = 84, little = true }, { name = "aligned, big endian", length = 84 },
}

local function int(part, form)
  if form.little then return part:le_int() end
  return part:int()
end

local function text_of(part) return part:raw():match("^[^\0]*") end

local function read_header(tvb, offset, form)
  local at = offset + form.length - 12
  local names = { text_of(tvb(offset, NAME_LENGTH)), text_of(tvb(offset + NAME_LENGTH, TYPE_LENGTH)) }
  local filesize = int(tvb(at, 4), form)
  return { upload = string.format("%d %q %q", filesize, names[1], names[2]), filesize = filesize,
    blocknum = int(tvb(at + 4, 4), form), blockno = int(tvb(at + 8, 4), form) }
end

local function fits(header)
  local down = math.floor(header.filesize / BLOCK_LENGTH)
  local up = math.ceil(header.filesize / BLOCK_LENGTH)
  return header.filesize >= 0 and (header.blocknum == up or header.blocknum == down + 1)
    and header.blockno >= -1 and header.blockno <= math.max(header.blocknum, 1)
end

local function is_name(text) return text:find("^[^\0\1-\31\127]") ~= nil and not text:match("^[^\0]*"):find("[\1-\31\127]") end

local function form_of(tvb)
  local first = tvb:raw(0, NAME_LENGTH + TYPE_LENGTH)
  if not first:find("\0") and first:find("=", 1, true) then return nil end
  if not is_name(first:sub(1, NAME_LENGTH)) or not is_name(first:sub(NAME_LENGTH + 1)) then return nil end
  local found, least = nil, nil
  for _, form in ipairs(FORMS) do  -- where several fit, what follows decides (S82-035); mostly that is the smallest file
    local header = tvb:len() >= form.length and read_header(tvb, 0, form) or nil
    if header and fits(header) and (least == nil or header.filesize < least) then
      found, least = form, header.filesize
    end
  end
  return found
end

local function bytes_of(header, blockno)
  return math.max(0, math.min(BLOCK_LENGTH, header.filesize - blockno * BLOCK_LENGTH))
end

-- How many bytes follow a header, whether that is only a guess, and from where the blocks are numbered if that is settled.
local function block_length(connection, header)
  if header.blockno < 0 then return 0, false end
  local upload = connection.client .. " " .. header.upload
  if header.blockno == 0 then numbered_from[upload] = numbered_from[upload] or 0 end
  if header.blockno == header.blocknum then numbered_from[upload] = numbered_from[upload] or 1 end
  local from_0 = bytes_of(header, header.blockno)
  local from_1 = header.blockno > 0 and bytes_of(header, header.blockno - 1) or 0
  if numbered_from[upload] == 1 then return from_1, false, 1 end
  return from_0, numbered_from[upload] == nil and from_0 ~= from_1, numbered_from[upload]
end

-- The same answer at every later look at a packet: what was learnt meanwhile must not move its frames.
local function remembered(connection, pinfo, offset, decide)
  local key = pinfo.number .. ":" .. offset
  if connection.lengths[key] == nil then connection.lengths[key] = decide() end
  return connection.lengths[key]
end

local function reply_length(connection, tvb, offset)
  local form, blocknum = connection.form, connection.asked
  local code, blockno = int(tvb(offset, 4), form), int(tvb(offset + 4, 4), form)
  if code ~= 0 or blockno ~= -1 or blocknum == nil then return REPLY_LENGTH end
  local complete = int(tvb(offset + 12, 4), form)
  return REPLY_LENGTH + math.floor(blocknum / 8) + 1 + (complete == 1 and STORED_AS_LENGTH or 0)
end

local function client_length(connection, tvb, offset)
  local header = read_header(tvb, offset, connection.form)
  if not fits(header) then return tvb:len() - offset end
  if header.blockno == -1 then connection.asked = header.blocknum end
  return connection.form.length + (block_length(connection, header))
end

local function add_name(tree, field, part)
  local text = printable(text_of(part))
  tree:add(field, part, text)
  return text
end

local function add_header(tvb, pinfo, tree, connection)
  local form = connection.form
  local header = tvb:len() >= form.length and read_header(tvb, 0, form) or nil
  if header == nil or not fits(header) then
    tree:add(f.bytes, tvb())
    tree:add_proto_expert_info(e.noise)
    say(pinfo, "struct82: no header")
    return
  end
  tree:add(f.form, tvb(0, form.length), form.name):set_generated()
  local name = add_name(tree, f.filename, tvb(0, NAME_LENGTH))
  add_name(tree, f.filetype, tvb(NAME_LENGTH, TYPE_LENGTH))
  local at = form.length - 12
  tree:add(f.filesize, tvb(at, 4), UInt64(header.filesize, 0))
  tree:add(f.blocknum, tvb(at + 4, 4), header.blocknum)
  tree:add(f.blockno, tvb(at + 8, 4), header.blockno)
  local length = tvb:len() - form.length
  local _, guessed, numbered = block_length(connection, header)
  if numbered then
    tree:add(f.numbering, tvb(at + 8, 4), "from " .. numbered):set_generated()
  elseif guessed then
    tree:add_proto_expert_info(e.guessed)
  end
  if length > 0 then tree:add(f.bytes, tvb(form.length)) end
  local what = header.blockno == -1 and "what is held?" or string.format("block %d of %d +%d", header.blockno, header.blocknum, length)
  say(pinfo, string.format("struct82: %s, %s", name, what))
end

local function add_reply(tvb, pinfo, tree, connection)
  local form = connection.form
  if tvb:len() < REPLY_LENGTH then return end
  local values = {}
  for index, name in ipairs({ "error", "blockno", "held", "complete" }) do
    values[name] = int(tvb(4 * index - 4, 4), form)
    tree:add(f[name], tvb(4 * index - 4, 4), values[name])
  end
  tree:add(f.digest, tvb(16, 32))
  if values.error ~= 0 then tree:add_proto_expert_info(e.refused) end
  local rest = tvb:len() - REPLY_LENGTH
  local name_length = values.complete == 1 and rest > STORED_AS_LENGTH and STORED_AS_LENGTH or 0
  if rest > name_length then tree:add(f.bitmap, tvb(REPLY_LENGTH, rest - name_length)) end
  if name_length > 0 then add_name(tree, f.stored_as, tvb(tvb:len() - name_length)) end
  local result = values.error ~= 0 and (ERRORS[values.error] or values.error) or "durable"
  if values.blockno == -1 and values.error == 0 then result = values.held .. " blocks held" end
  say(pinfo, string.format("struct82: %d: %s%s", values.blockno, result, values.complete == 1 and ", complete" or ""))
end

local function dissect_struct82(tvb, pinfo, root, connection)
  local client = from_client(connection, pinfo)
  local length_of = client and client_length or reply_length
  local least = client and connection.form.length or REPLY_LENGTH
  local add = client and add_header or add_reply
  dissect_tcp_pdus(tvb, root, least, function(whole, packet, offset)
    return remembered(connection, packet, offset, function() return length_of(connection, whole, offset) end)
  end, function(pdu, packet, tree)
    local branch = tree:add(bpd, pdu())
    branch:add(f.dialect, pdu(0, 0), "struct82"):set_generated()
    add(pdu, packet, branch, connection)
    return pdu:len()
  end)
end

-- ---- which connection is which --------------------------------------------------------------------------------------

local function dissect(tvb, pinfo, root)
  local stream = tcp_stream()
  local connection = stream and connections[tostring(stream.value)]
  if not connection then return 0 end
  if connection.form then
    dissect_struct82(tvb, pinfo, root, connection)
  else
    local tree = root:add(bpd, tvb())
    tree:add(f.dialect, "sourceid"):set_generated()
    dissect_sourceid(tvb, pinfo, tree, connection)
  end
  return tvb:len()
end

bpd.dissector = dissect

bpd:register_heuristic("tcp", function(tvb, pinfo, root)
  local stream = tcp_stream()
  if stream == nil or tvb:len() < 20 then return false end
  local form = tvb:len() >= FORMS[1].length and form_of(tvb) or nil
  if form == nil and not is_request(tvb:raw(0, math.min(tvb:len(), FIRST_BYTES))) then return false end
  connections[tostring(stream.value)] = { client = tostring(pinfo.src), client_port = pinfo.src_port, form = form, lengths = {} }
  pinfo.conversation = bpd
  dissect(tvb, pinfo, root)
  return true
end)
