import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { checkMessage, decodeFrame, encodeFrame } from '../../../protocol/codec.ts'
import { EXECUTION_STATES, type ExecutionState, FINAL_STATES, isFinal, mayChange } from '../../../protocol/commands.ts'
import { CodedError } from '../../../protocol/errors.ts'
import { agentToHubSchemas } from '../../../protocol/messages.ts'
import { parseSelector } from '../../../protocol/selector.ts'

/** The table of commands.md, read by hand. */
const EDGES: Partial<Record<ExecutionState, readonly ExecutionState[]>> = {
  queued: ['delivered', 'expired', 'superseded', 'cancelled'],
  delivered: [
    'queued',
    'delivered',
    'accepted',
    'running',
    'succeeded',
    'failed',
    'rejected',
    'timed_out',
    'canceling',
    'expired',
    'cancelled',
  ],
  accepted: ['running', 'succeeded', 'failed', 'rejected', 'timed_out', 'canceling', 'cancelled'],
  running: ['succeeded', 'failed', 'rejected', 'timed_out', 'canceling', 'cancelled'],
  canceling: ['cancelled', 'delivered', 'accepted', 'running', 'succeeded', 'failed', 'rejected', 'timed_out'],
}

describe('the states of an execution', () => {
  it('change along the edges of commands.md and no others', () => {
    for (const from of EXECUTION_STATES) {
      const to = EXECUTION_STATES.filter((state) => mayChange(from, state))
      expect([...to].sort(), from).toEqual([...(EDGES[from] ?? [])].sort())
    }
  })

  it('have no way out once they are final, and a way to an end before', () => {
    for (const from of EXECUTION_STATES) {
      expect(EXECUTION_STATES.some((to) => mayChange(from, to))).toBe(!isFinal(from))
      if (!isFinal(from)) expect(FINAL_STATES.some((to) => mayChange(from, to))).toBe(true)
    }
  })
})

describe('a label selector', () => {
  const labels = { site: 'berlin', tier: '1' }
  it.each([
    ['site=berlin', true],
    ['site!=berlin', false],
    ['site in (osaka,berlin), tier=1', true],
    ['site in (osaka), tier=1', false],
    ['!gone, site', true],
    ['gone!=x', true],
  ])('%s is %s of the label set', (text, expected) => {
    expect(parseSelector(text).matches(labels)).toBe(expected)
  })

  it('throws nothing but bad_selector, whatever it is given', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        try {
          parseSelector(text).matches(labels)
        } catch (error) {
          expect((error as CodedError).code).toBe('bad_selector')
        }
      }),
    )
  })
})

describe('a frame', () => {
  it('comes back as it went, in both codecs, bytes and U+0000 included', () => {
    const message = { t: 'result', text: 'a\u0000b', data: new Uint8Array([0, 255]), list: [1, -1, 0.5, null, true] }
    for (const codec of ['msgpack', 'json'] as const) {
      const [back] = decodeFrame(codec, encodeFrame(codec, message))
      expect({ ...back, data: Array.from((back?.data ?? []) as Uint8Array) }).toEqual({ ...message, data: [0, 255] })
    }
  })

  it.each([
    ['an array of four thousand million items', [0xdd, 0xff, 0xff, 0xff, 0xff]],
    ['a nest that never ends', Array.from({ length: 10_000 }, () => 0x91)],
    ['an extension type', [0xd4, 0x78, 0x00]],
    ['bytes behind the message', [0x80, 0x80]],
    ['a bare number', [0x07]],
  ])('is refused when it is %s', (_name, bytes) => {
    expect(() => decodeFrame('msgpack', Uint8Array.from(bytes))).toThrow(CodedError)
  })

  it('is refused by the name of its type, even when that is no name', () => {
    const hostile = { t: { toString: 1, valueOf: 1 } }
    expect(() => checkMessage(agentToHubSchemas, hostile)).toThrow(/unknown message/)
    expect(() => checkMessage(agentToHubSchemas, { t: 'ready', link_epoch: -1 })).toThrow(/link_epoch/)
  })

  it('of random bytes throws nothing but bad_frame', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 200 }),
        fc.constantFrom('msgpack' as const, 'json' as const),
        (bytes, codec) => {
          try {
            decodeFrame(codec, bytes)
          } catch (error) {
            expect((error as CodedError).code).toBe('bad_frame')
          }
        },
      ),
      { numRuns: 20_000 },
    )
  })
})
