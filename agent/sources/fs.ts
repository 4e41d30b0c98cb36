import { lstat, readdir } from 'node:fs/promises'
import path from 'node:path'

export interface WalkCounts {
  files: number
  directories: number
  bytes: number
  /** What was left out, by why: links, other (FIFOs, sockets, devices), unreadable, names that are not UTF-8. */
  skipped: Record<string, number>
}

export interface WalkOptions {
  recursive: boolean
  signal: AbortSignal
  onProgress(counts: WalkCounts): void
}

const decoder = new TextDecoder('utf-8', { fatal: true })

/** Walks a directory and counts what is there. Links are not followed, so that a loop of them ends nothing. */
export async function walk(root: string, options: WalkOptions): Promise<WalkCounts> {
  const counts: WalkCounts = { files: 0, directories: 0, bytes: 0, skipped: {} }
  const top = await lstat(root)
  if (!top.isDirectory()) return { ...counts, files: 1, bytes: top.size }
  const open = [root]
  for (let folder = open.pop(); folder !== undefined; folder = open.pop()) {
    counts.directories += 1
    const names = await readdir(folder, { encoding: 'buffer' }).catch((error: Error) => {
      if (folder === root) throw error
      return null
    })
    if (names === null) skip(counts, 'unreadable')
    for (const raw of names ?? []) {
      options.signal.throwIfAborted()
      await count(folder, raw, counts, options.recursive ? open : null)
    }
    options.onProgress(counts)
  }
  return counts
}

async function count(folder: string, raw: Buffer, counts: WalkCounts, open: string[] | null): Promise<void> {
  const name = decode(raw)
  if (name === null) return skip(counts, 'not_utf8')
  const file = path.join(folder, name)
  // Gone between the listing and the look: nothing to count.
  const stat = await lstat(file).catch(() => null)
  if (!stat) return skip(counts, 'vanished')
  if (stat.isSymbolicLink()) return skip(counts, 'link')
  if (stat.isDirectory()) {
    if (open) open.push(file)
    else counts.directories += 1
    return
  }
  if (!stat.isFile()) return skip(counts, 'special')
  counts.files += 1
  counts.bytes += stat.size
}

function decode(raw: Buffer): string | null {
  try {
    return decoder.decode(raw)
  } catch {
    return null
  }
}

function skip(counts: WalkCounts, why: string): void {
  counts.skipped[why] = (counts.skipped[why] ?? 0) + 1
}
