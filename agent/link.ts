import type { Logger } from 'pino'
import { WebSocket } from 'ws'
import { checkMessage, decodeFrame, encodeFrame } from '../protocol/codec.ts'
import { CLOSE_CODES, mayReconnect } from '../protocol/errors.ts'
import {
  type AgentToHub,
  type Hello,
  type HubToAgent,
  hubToAgentSchemas,
  SUBPROTOCOLS,
  WIRE_LIMITS,
} from '../protocol/messages.ts'
import type { Executor } from './executor.ts'
import type { Ledger } from './ledger.ts'

export interface LinkParts {
  url: string
  credential: string
  ledger: Ledger
  executor: Executor
  logger: Logger
  hello(): Hello
  configHash(): string
  /** The hub will not have this agent again; the process should end. */
  refused(why: string): void
  ready(): void
}

const BACKOFF_MS = { first: 500, most: 60_000 }
/** Silence after which a link is given up: two pings and a bit. */
const SILENT_MS = 45_000

/** Keeps one live link to the hub: handshake, pings, and a new one with backoff when it breaks. */
export class Link {
  readonly #parts: LinkParts
  #socket: WebSocket | null = null
  #epoch = 0
  #isReady = false
  #welcomedAt = 0
  #attempts = 0
  #pingSeq = 0
  #lastHeardAt = 0
  #pinger: NodeJS.Timeout | undefined
  #retry: NodeJS.Timeout | undefined
  #closing = false
  #askedDelayMs: number | null = null

  constructor(parts: LinkParts) {
    this.#parts = parts
  }

  connect(): void {
    const socket = new WebSocket(
      `${this.#parts.url.replace(/^http/, 'ws').replace(/\/+$/, '')}/api/v1/agent/socket`,
      SUBPROTOCOLS.msgpack,
      {
        headers: { authorization: `Bearer ${this.#parts.credential}` },
        perMessageDeflate: false,
        maxPayload: WIRE_LIMITS.engineBytes,
        handshakeTimeout: 10_000,
      },
    )
    this.#socket = socket
    socket.on('open', () => this.#say(socket, this.#parts.hello()))
    socket.on('message', (data: Buffer) => {
      // Frames of an older link are dropped (R8).
      if (socket === this.#socket) this.#receive(socket, data)
    })
    socket.on('unexpected-response', (_request, response) => {
      response.resume()
      if (response.statusCode === 403) this.#giveUp('the hub refuses the credential; enrol the agent anew')
      else this.#parts.logger.warn({ status: response.statusCode }, 'the hub did not take the socket')
      socket.terminate()
    })
    socket.on('error', (error) => this.#parts.logger.warn({ err: error.message }, 'link error'))
    socket.on('close', (code, reason) => this.#closed(socket, code, reason.toString('utf8')))
  }

  /** Says it if the link is ready, else drops it: what matters is in the ledger and said again. */
  send(message: AgentToHub): void {
    if (this.#socket && this.#isReady) this.#say(this.#socket, message)
  }

  async close(reason: string): Promise<void> {
    this.#closing = true
    clearTimeout(this.#retry)
    clearInterval(this.#pinger)
    const socket = this.#socket
    if (!socket || socket.readyState !== WebSocket.OPEN) {
      socket?.terminate()
      return
    }
    this.#say(socket, { t: 'bye', reason })
    const closed = new Promise((resolve) => socket.once('close', resolve))
    socket.close(CLOSE_CODES.going_away)
    await closed
  }

  #say(socket: WebSocket, message: AgentToHub): void {
    if (socket.readyState === WebSocket.OPEN) socket.send(encodeFrame('msgpack', message), { binary: true })
  }

  #receive(socket: WebSocket, data: Buffer): void {
    this.#lastHeardAt = performance.now()
    try {
      for (const raw of decodeFrame('msgpack', data)) {
        const message = checkMessage(hubToAgentSchemas, raw)
        this.#take(socket, message).catch((error: Error) => {
          this.#parts.logger.error({ message: message.t, err: error.message }, 'could not take a message')
          socket.terminate()
        })
      }
    } catch (error) {
      this.#parts.logger.warn({ err: (error as Error).message }, 'the hub said something that this agent cannot read')
    }
  }

  async #take(socket: WebSocket, message: HubToAgent): Promise<void> {
    const { ledger, executor, logger } = this.#parts
    switch (message.t) {
      case 'welcome':
        this.#welcomedAt = performance.now()
        this.#epoch = message.link_epoch
        // The epoch is on disk before `ready` says so (R5).
        await ledger.setEpoch(message.link_epoch)
        this.#settle(socket, message.ping_s)
        return
      case 'command':
        await executor.receive(message, performance.now() - this.#welcomedAt - message.expires_hub_ms)
        return
      case 'cancel':
        await executor.cancel(message)
        return
      case 'result_ok':
        await ledger.confirm(message.exec_ids, message.settled_below)
        return
      case 'reconnect':
        this.#askedDelayMs = message.after_ms
        return
      case 'error':
        logger.warn({ code: message.code }, `the hub says: ${message.message}`)
        return
      default:
        return
    }
  }

  #settle(socket: WebSocket, pingS: number): void {
    const { ledger, executor, logger } = this.#parts
    if (socket !== this.#socket) return
    const open = ledger.open()
    for (let at = 0; at === 0 || at < open.length; at += WIRE_LIMITS.openPage) {
      const items = open.slice(at, at + WIRE_LIMITS.openPage)
      this.#say(socket, { t: 'open', items, last: at + WIRE_LIMITS.openPage >= open.length })
    }
    this.#say(socket, { t: 'ready', link_epoch: this.#epoch })
    this.#isReady = true
    this.#attempts = 0
    logger.info({ link_epoch: this.#epoch, open: open.length }, 'link ready')
    executor.resend()
    this.#parts.ready()
    this.#pinger = setInterval(() => {
      if (performance.now() - this.#lastHeardAt > SILENT_MS) socket.terminate()
      else this.#say(socket, { t: 'ping', seq: this.#pingSeq++, config_hash: this.#parts.configHash() })
    }, pingS * 1000)
  }

  #closed(socket: WebSocket, code: number, reason: string): void {
    if (socket !== this.#socket) return
    this.#isReady = false
    clearInterval(this.#pinger)
    if (this.#closing) return
    if (!mayReconnect(code)) {
      this.#giveUp(`${reason} (${code})`)
      return
    }
    if (code === CLOSE_CODES.replaced) {
      this.#giveUp('another process with this identity took the link over')
      return
    }
    const ceiling = Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** this.#attempts)
    this.#attempts += 1
    const delay = this.#askedDelayMs ?? Math.max(BACKOFF_MS.first * 0.2, Math.random() * ceiling)
    this.#askedDelayMs = null
    this.#parts.logger.info({ code, reason, delay_ms: Math.round(delay) }, 'link closed; coming back')
    this.#retry = setTimeout(() => this.connect(), delay)
  }

  #giveUp(why: string): void {
    if (this.#closing) return
    this.#closing = true
    this.#parts.refused(why)
  }
}
