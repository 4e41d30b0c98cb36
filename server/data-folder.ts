import { randomBytes } from 'node:crypto'
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import Database from 'libsql'
import { type Settings, SettingsError } from './settings.ts'

/** Makes the data folder where it is missing, readable by its owner only. */
export function prepareDataFolder(folder: string): void {
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 })
  } catch (error) {
    throw new SettingsError(`cannot make the data folder ${folder}: ${(error as Error).message}`)
  }
}

/**
 * Keeps a second hub off the folder. The lock is SQLite's own on a file beside the store: the system drops it with the
 * process, however that ends, so nothing stale is left behind.
 */
export function lockDataFolder(folder: string): { release(): void } {
  const lock = new Database(path.join(folder, 'hub.lock'))
  try {
    lock.pragma('locking_mode = EXCLUSIVE')
    lock.exec('BEGIN EXCLUSIVE')
  } catch {
    throw new SettingsError(`another hub runs on the data folder ${folder}; stop it, or name another with --data`)
  }
  return { release: () => lock.close() }
}

/** The key for what has to be read back; made on the first run. */
export function readSecretKey(settings: Settings): Buffer {
  if (settings.secretKey !== undefined) return Buffer.from(settings.secretKey, 'hex')
  const file = path.join(settings.data, 'secret.key')
  if (!existsSync(file)) writePrivate(file, `${randomBytes(32).toString('hex')}\n`)
  const text = readFileSync(file, 'utf8').trim()
  if (!/^[0-9a-f]{64}$/i.test(text)) throw new SettingsError(`${file}: not 64 hexadecimal digits`)
  return Buffer.from(text, 'hex')
}

/** Writes a file that only its owner reads. */
export function writePrivate(file: string, text: string): void {
  writeFileSync(file, text, { mode: 0o600 })
  chmodSync(file, 0o600)
}
