import { createRequire } from 'node:module'
import path from 'node:path'

/** The part of uWebSockets.js that we use, as its two packages have it. */
export interface UwsResponse {
  onAborted(handler: () => void): UwsResponse
  onData(handler: (chunk: ArrayBuffer, isLast: boolean) => void): UwsResponse
  cork(callback: () => void): UwsResponse
  writeStatus(status: string): UwsResponse
  writeHeader(key: string, value: string): UwsResponse
  end(body?: Uint8Array | string): UwsResponse
  getRemoteAddressAsText(): ArrayBuffer
  upgrade<T>(data: T, key: string, protocol: string, extensions: string, context: unknown): void
}

export interface UwsRequest {
  getMethod(): string
  getUrl(): string
  getQuery(): string
  getHeader(name: string): string
  forEach(callback: (key: string, value: string) => void): void
}

export interface UwsSocket<T> {
  getUserData(): T
  send(message: Uint8Array, isBinary: boolean): 0 | 1 | 2
  getBufferedAmount(): number
  end(code: number, reason: string): void
  close(): void
}

export interface UwsBehavior<T> {
  maxPayloadLength: number
  idleTimeout: number
  maxBackpressure: number
  sendPingsAutomatically: boolean
  upgrade(res: UwsResponse, req: UwsRequest, context: unknown): void
  open(ws: UwsSocket<T>): void
  message(ws: UwsSocket<T>, message: ArrayBuffer, isBinary: boolean): void
  close(ws: UwsSocket<T>, code: number, message: ArrayBuffer): void
}

export interface UwsApp {
  any(pattern: string, handler: (res: UwsResponse, req: UwsRequest) => void): UwsApp
  ws<T>(pattern: string, behavior: UwsBehavior<T>): UwsApp
  listen(host: string, port: number, options: number, callback: (token: unknown) => void): UwsApp
  close(): UwsApp
}

export interface Uws {
  App(): UwsApp
  us_listen_socket_close(token: unknown): void
}

/** Listens with SO_REUSEPORT, so that a restart after kill -9 gets its port back at once. */
export const LISTEN_SHARED = 0

const require = createRequire(import.meta.url)

/**
 * Loads the first native build that runs here. The packages' own entry points are not used: one of them falls back to
 * a slow shim without a word. Throws an error that lists what was tried, and why each did not load.
 */
export function loadUws(): { uws: Uws; why: string } {
  const file = `uws_${process.platform}_${process.arch}_${process.versions.modules}.node`
  const candidates = [
    { name: 'uWebSockets.js', folder: '.' },
    { name: 'uWebSockets.js-glibc2.31', folder: '../binaries' },
  ]
  const tried: string[] = []
  for (const { name, folder } of candidates) {
    try {
      const binary = path.resolve(path.dirname(require.resolve(name)), folder, file)
      const uws = require(binary) as Uws
      return { uws, why: [`${name} loaded`, ...tried].join('; ') }
    } catch (error) {
      tried.push(`${name} did not: ${(error as Error).message.split('\n')[0]}`)
    }
  }
  throw new Error(`no build of uWebSockets.js runs on this machine (${file}): ${tried.join('; ')}`)
}
