import { z } from 'zod'

/** Agent ids (protocol.md, Identity). They appear in paths, credentials and file names, so nothing else is let in. */
export const agentIdSchema = z.string().regex(/^[A-Za-z0-9_.-]{1,64}$/, 'an agent id is 1 to 64 of A-Z a-z 0-9 _ . -')

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/

export const uuidSchema = z.string().regex(UUID, 'not a lower-case UUID')

let lastMs = 0
let counter = 0

/**
 * A UUIDv7 (RFC 9562): 48 bits of `nowMs`, then a 12-bit counter so that ids made by one process in one
 * millisecond still sort in the order they were made, then random bits.
 */
export function uuidv7(nowMs: number = Date.now()): string {
  const bytes = new Uint8Array(16)
  globalThis.crypto.getRandomValues(bytes)
  if (nowMs > lastMs) {
    lastMs = nowMs
    counter = ((bytes[6] as number) & 0x07) << 8
  } else {
    counter += 1
    if (counter > 0xfff) {
      lastMs += 1
      counter = 0
    }
  }
  let ms = lastMs
  for (let i = 5; i >= 0; i--) {
    bytes[i] = ms % 256
    ms = Math.floor(ms / 256)
  }
  bytes[6] = 0x70 | (counter >> 8)
  bytes[7] = counter & 0xff
  bytes[8] = ((bytes[8] as number) & 0x3f) | 0x80
  let hex = ''
  for (const byte of bytes) hex += byte.toString(16).padStart(2, '0')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}
