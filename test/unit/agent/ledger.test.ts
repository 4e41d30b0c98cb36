import { appendFileSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Ledger, type Outcome } from '../../../agent/ledger.ts'
import { uuidv7 } from '../../../protocol/ids.ts'
import { removeFolder, temporaryFolder } from '../../support/processes.ts'

const OUTCOME: Outcome = { status: 'succeeded', result: { text: 'a\u0000b' }, hash: 'h' }

function command(seq: number) {
  return { exec_id: uuidv7(), seq, lane: 'work', type: 'scan', args: { path: '/' }, timeout_ms: 1000 }
}

describe('the ledger', () => {
  let folder: string
  beforeEach(() => {
    folder = temporaryFolder()
  })
  afterEach(() => removeFolder(folder))
  const file = () => path.join(folder, 'ledger')

  it('remembers states, results, the epoch and its own id over a restart', async () => {
    const first = await Ledger.open(folder)
    const [a, b, c] = [command(1), command(2), command(3)]
    await first.setEpoch(7)
    await Promise.all([first.accept(a), first.accept(b)])
    await first.started(a.exec_id)
    await first.done(a.exec_id, OUTCOME)
    await first.started(b.exec_id)
    await first.tombstone(c.exec_id, 3, { status: 'cancelled', hash: 'x' })
    const second = await Ledger.open(folder)
    expect(second.ledgerId).toBe(first.ledgerId)
    expect([second.lastLinkEpoch, second.maxSeq]).toEqual([7, 3])
    expect(second.get(a.exec_id)).toMatchObject({ state: 'done', outcome: OUTCOME })
    expect(second.get(b.exec_id)?.state).toBe('started')
    expect(second.get(c.exec_id)?.state).toBe('cancelled')
  })

  it('knows a twin before its record is on disk', async () => {
    const ledger = await Ledger.open(folder)
    const one = command(1)
    const writing = ledger.accept(one)
    expect(ledger.get(one.exec_id)?.state).toBe('accepted')
    await writing
  })

  it('drops a record torn at any byte, and keeps every one before it', async () => {
    const ledger = await Ledger.open(folder)
    const one = command(1)
    await ledger.accept(one)
    const whole = readFileSync(file())
    await ledger.started(one.exec_id)
    const all = readFileSync(file())
    for (let cut = whole.length; cut < all.length; cut++) {
      writeFileSync(file(), all.subarray(0, cut))
      const reopened = await Ledger.open(folder)
      expect(reopened.ledgerId).toBe(ledger.ledgerId)
      expect(reopened.get(one.exec_id)?.state, `cut at ${cut}`).toBe('accepted')
      await reopened.started(one.exec_id)
      expect((await Ledger.open(folder)).get(one.exec_id)?.state).toBe('started')
    }
  })

  it('puts a file aside that is damaged before its end, and starts under a new id', async () => {
    const ledger = await Ledger.open(folder)
    await ledger.accept(command(1))
    await ledger.accept(command(2))
    const data = readFileSync(file())
    data[30] = (data[30] ?? 0) ^ 0xff
    writeFileSync(file(), data)
    const fresh = await Ledger.open(folder)
    expect(fresh.ledgerId).not.toBe(ledger.ledgerId)
    expect(fresh.lastLinkEpoch).toBe(0)
    expect(readdirSync(folder).some((name) => name.startsWith('ledger.damaged-'))).toBe(true)
  })

  it('starts anew where not even its id is whole', async () => {
    await Ledger.open(folder)
    truncateSync(file(), 5)
    appendFileSync(file(), '')
    expect((await Ledger.open(folder)).open()).toEqual([])
  })

  it('forgets only what is confirmed, an hour old and below the floor', async () => {
    let now = 1_000_000
    const ledger = await Ledger.open(folder, () => now)
    const [a, b] = [command(1), command(5)]
    for (const one of [a, b]) {
      await ledger.accept(one)
      await ledger.done(one.exec_id, OUTCOME)
    }
    await ledger.confirm([a.exec_id, b.exec_id], 3)
    expect(ledger.get(a.exec_id)).toBeDefined()
    now += 3_600_001
    await ledger.confirm([], 3)
    expect(ledger.get(a.exec_id)).toBeUndefined()
    expect(ledger.get(b.exec_id)).toBeDefined()
    expect(ledger.floor).toBe(3)
  })
})
