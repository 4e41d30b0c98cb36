import { Packr, Unpackr } from 'msgpackr'
import type { z } from 'zod'
import { CodedError } from './errors.ts'
import { type Codec, WIRE_LIMITS } from './messages.ts'

/**
 * Frames: one message or an array of messages, MessagePack in binary frames, JSON in text frames.
 * Decoding is safe on hostile bytes: the structure is checked before anything is built from it.
 */

const options = { useRecords: false, mapsAsObjects: true, int64AsType: 'number', copyBuffers: true } as const
const packr = new Packr(options)
const unpackr = new Unpackr(options)
const utf8 = new TextDecoder('utf-8', { fatal: true })
const toUtf8 = new TextEncoder()

/** Nesting that no message of ours needs; deeper is an attack on the stack. */
const MAX_DEPTH = 32
/** In JSON, bytes travel as `{"$bytes": BASE64}`. */
const BYTES_KEY = '$bytes'

/** Encodes one message, or several as an array. The result is a copy that may be kept. */
export function encodeFrame(codec: Codec, message: unknown): Uint8Array {
  if (codec === 'json') return toUtf8.encode(JSON.stringify(message, writeBytes))
  // pack() answers a view of a pooled buffer, which the next call may overwrite.
  return Uint8Array.prototype.slice.call(packr.pack(message))
}

/** Decodes a frame into its messages. Throws `bad_frame` that says what was wrong. */
export function decodeFrame(codec: Codec, frame: Uint8Array): Record<string, unknown>[] {
  const value = codec === 'json' ? decodeJson(frame) : decodeMsgpack(frame)
  const messages = Array.isArray(value) ? value : [value]
  if (messages.length > WIRE_LIMITS.frameMessages) {
    throw new CodedError('bad_frame', `a frame holds at most ${WIRE_LIMITS.frameMessages} messages`)
  }
  for (const message of messages) {
    if (typeof message !== 'object' || message === null || Array.isArray(message) || message instanceof Uint8Array) {
      throw new CodedError('bad_frame', 'a message is a map with "t", or an array of such maps')
    }
  }
  return messages as Record<string, unknown>[]
}

/** Bytes of one value in MessagePack, for storing and hashing; a copy that may be kept. */
export function packValue(value: unknown): Uint8Array {
  return Uint8Array.prototype.slice.call(packr.pack(value))
}

/** The value of `packValue`. The bytes are our own, yet checked: a damaged row must not take the process with it. */
export function unpackValue(data: Uint8Array): unknown {
  return decodeMsgpack(data)
}

/** JSON text of a value in which bytes stand as `{"$bytes": BASE64}`. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, writeBytes) ?? 'null'
}

function decodeJson(frame: Uint8Array): unknown {
  let value: unknown
  try {
    value = JSON.parse(utf8.decode(frame), readBytes)
  } catch (error) {
    throw new CodedError('bad_frame', `not JSON: ${(error as Error).message.slice(0, 120)}`)
  }
  checkDepth(value, 0)
  return value
}

function checkDepth(value: unknown, depth: number): void {
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return
  if (depth >= MAX_DEPTH) throw new CodedError('bad_frame', `nested deeper than ${MAX_DEPTH}`)
  for (const item of Object.values(value)) checkDepth(item, depth + 1)
}

function decodeMsgpack(frame: Uint8Array): unknown {
  const end = skipValue(frame, 0, 0)
  if (end !== frame.length) throw new CodedError('bad_frame', `${frame.length - end} bytes too many after the message`)
  try {
    return unpackr.unpack(frame)
  } catch (error) {
    throw new CodedError('bad_frame', `not MessagePack: ${(error as Error).message.slice(0, 120)}`)
  }
}

/**
 * Walks over one MessagePack value without building it and returns where it ends. Refuses what would make the real
 * decoder allocate for elements that are not there, recurse without end, or build extension types (dates, regular
 * expressions, records): nothing on this wire is one.
 */
function skipValue(data: Uint8Array, start: number, depth: number): number {
  if (depth > MAX_DEPTH) throw new CodedError('bad_frame', `nested deeper than ${MAX_DEPTH}`)
  const tag = byteAt(data, start)
  if (tag <= 0x7f || tag >= 0xe0) return start + 1
  if (tag <= 0x8f) return skipItems(data, start + 1, (tag & 0x0f) * 2, depth)
  if (tag <= 0x9f) return skipItems(data, start + 1, tag & 0x0f, depth)
  if (tag <= 0xbf) return skipBytes(data, start + 1, tag & 0x1f)
  switch (tag) {
    case 0xc0:
    case 0xc2:
    case 0xc3:
      return start + 1
    case 0xc4:
    case 0xd9:
      return skipBytes(data, start + 2, readUint(data, start + 1, 1))
    case 0xc5:
    case 0xda:
      return skipBytes(data, start + 3, readUint(data, start + 1, 2))
    case 0xc6:
    case 0xdb:
      return skipBytes(data, start + 5, readUint(data, start + 1, 4))
    case 0xcc:
    case 0xd0:
      return skipBytes(data, start + 1, 1)
    case 0xcd:
    case 0xd1:
      return skipBytes(data, start + 1, 2)
    case 0xca:
    case 0xce:
    case 0xd2:
      return skipBytes(data, start + 1, 4)
    case 0xcb:
    case 0xcf:
    case 0xd3:
      return skipBytes(data, start + 1, 8)
    case 0xdc:
      return skipItems(data, start + 3, readUint(data, start + 1, 2), depth)
    case 0xdd:
      return skipItems(data, start + 5, readUint(data, start + 1, 4), depth)
    case 0xde:
      return skipItems(data, start + 3, readUint(data, start + 1, 2) * 2, depth)
    case 0xdf:
      return skipItems(data, start + 5, readUint(data, start + 1, 4) * 2, depth)
    default:
      throw new CodedError('bad_frame', `MessagePack type 0x${tag.toString(16)} is not used on this wire`)
  }
}

function skipItems(data: Uint8Array, start: number, count: number, depth: number): number {
  // Each item takes a byte at least, so a count over what is left is a lie.
  if (count > data.length - start) throw new CodedError('bad_frame', 'the frame ends early')
  let at = start
  for (let i = 0; i < count; i++) at = skipValue(data, at, depth + 1)
  return at
}

function skipBytes(data: Uint8Array, start: number, length: number): number {
  if (start + length > data.length) throw new CodedError('bad_frame', 'the frame ends early')
  return start + length
}

function byteAt(data: Uint8Array, at: number): number {
  const byte = data[at]
  if (byte === undefined) throw new CodedError('bad_frame', 'the frame ends early')
  return byte
}

function readUint(data: Uint8Array, at: number, width: number): number {
  let value = 0
  for (let i = 0; i < width; i++) value = value * 256 + byteAt(data, at + i)
  return value
}

function writeBytes(_key: string, value: unknown): unknown {
  if (value instanceof Uint8Array) return { [BYTES_KEY]: toBase64(value) }
  // A Node Buffer has met its own toJSON before this function sees it.
  if (isBufferJson(value)) return { [BYTES_KEY]: toBase64(Uint8Array.from(value.data)) }
  return typeof value === 'bigint' ? Number(value) : value
}

function isBufferJson(value: unknown): value is { type: 'Buffer'; data: number[] } {
  const candidate = value as { type?: unknown; data?: unknown } | null
  return (
    typeof value === 'object' &&
    candidate?.type === 'Buffer' &&
    Array.isArray(candidate.data) &&
    Object.keys(candidate).length === 2
  )
}

function readBytes(_key: string, value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value
  const encoded = (value as Record<string, unknown>)[BYTES_KEY]
  return typeof encoded === 'string' && Object.keys(value).length === 1 ? fromBase64(encoded) : value
}

function toBase64(data: Uint8Array): string {
  let binary = ''
  for (let i = 0; i < data.length; i += 0x8000) binary += String.fromCharCode(...data.subarray(i, i + 0x8000))
  return btoa(binary)
}

function fromBase64(text: string): Uint8Array {
  const binary = atob(text)
  const data = new Uint8Array(binary.length)
  for (let i = 0; i < binary.length; i++) data[i] = binary.charCodeAt(i)
  return data
}

type SchemaTable = Readonly<Record<string, z.ZodType>>

/**
 * Checks one decoded map against the table of its direction.
 * Throws `unknown_message` for a `t` that is not in the table, `bad_message` that names the fields otherwise.
 */
export function checkMessage<T extends SchemaTable>(table: T, message: Record<string, unknown>): z.infer<T[keyof T]> {
  const { t } = message
  const schema = typeof t === 'string' && Object.hasOwn(table, t) ? table[t] : undefined
  // An object may have a toString that throws, so only a string is ever shown.
  if (!schema)
    throw new CodedError(
      'unknown_message',
      `unknown message ${typeof t === 'string' ? JSON.stringify(t.slice(0, 40)) : typeof t}`,
    )
  const parsed = schema.safeParse(message)
  if (!parsed.success) throw new CodedError('bad_message', `${String(t)}: ${describeIssues(parsed.error)}`)
  return parsed.data as z.infer<T[keyof T]>
}

/** "targets.agent_ids[0]: an agent id is ..." for people, at most five of them. */
export function describeIssues(error: z.ZodError): string {
  const shown = error.issues.slice(0, 5).map((issue) => {
    const path = issue.path.map((part) => (typeof part === 'number' ? `[${part}]` : `.${String(part)}`)).join('')
    return path === '' ? issue.message : `${path.replace(/^\./, '')}: ${issue.message}`
  })
  const more = error.issues.length - shown.length
  return more > 0 ? `${shown.join('; ')}; and ${more} more` : shown.join('; ')
}
