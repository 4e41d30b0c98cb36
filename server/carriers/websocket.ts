import { decodeFrame, encodeFrame } from '../../protocol/codec.ts'
import { CLOSE_CODES, type CloseReason, CodedError } from '../../protocol/errors.ts'
import { uuidv7 } from '../../protocol/ids.ts'
import { type Codec, type HubToAgent, SUBPROTOCOLS, WIRE_LIMITS } from '../../protocol/messages.ts'
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import type { AgentLink, LinkAcceptor, LinkListener, SendOutcome } from '../link.ts'
import { errorResponse, type HttpRequest, type Socket, type SocketRoute } from '../web/engine.ts'

interface Identity {
  agentId: string
  credentialId: string
}

interface SocketData {
  identity: Identity
  codec: Codec
  tokens: number
  refilledAt: number
  listener: LinkListener | null
}

export interface AgentSocketOptions {
  acceptor: LinkAcceptor
  /** Throws `unauthenticated`, `invalid_credential` or `revoked`. */
  authenticate(bearer: string | undefined): Promise<Identity>
  clock: Clock
}

/** The normal carrier: one WebSocket an agent, MessagePack or JSON by subprotocol (protocol.md, Carriers). */
export function agentSocketRoute(options: AgentSocketOptions): SocketRoute<SocketData> {
  return {
    path: '/api/v1/agent/socket',
    async upgrade(request) {
      const codec = chooseCodec(request)
      if (!codec) {
        const offer = Object.values(SUBPROTOCOLS).join(' or ')
        return { refuse: errorResponse(new CodedError('bad_message', `offer the subprotocol ${offer}`)) }
      }
      try {
        const identity = await options.authenticate(bearerOf(request))
        const data = { identity, codec, tokens: LIMITS.messageBurst, refilledAt: options.clock.now(), listener: null }
        return { accept: data, protocol: SUBPROTOCOLS[codec] }
      } catch (error) {
        return { refuse: errorResponse(error as Error) }
      }
    },
    open(socket) {
      socket.data.listener = options.acceptor.accept(new SocketLink(socket))
    },
    message(socket, data, isBinary) {
      receive(socket, data, isBinary, options.clock)
    },
    closed(socket, code, reason) {
      socket.data.listener?.closed(code, reason)
    },
  }
}

function receive(socket: Socket<SocketData>, data: Uint8Array, isBinary: boolean, clock: Clock): void {
  const { codec, listener } = socket.data
  if (!listener || !socket.alive) return
  if (data.length > WIRE_LIMITS.messageBytes) {
    refuse(socket, new CodedError('too_big', `a message is at most ${WIRE_LIMITS.messageBytes} bytes`), 'too_big')
    return
  }
  try {
    if (isBinary !== (codec === 'msgpack')) {
      throw new CodedError(
        'bad_frame',
        codec === 'msgpack' ? 'MessagePack travels in binary frames' : 'JSON travels in text frames',
      )
    }
    const messages = decodeFrame(codec, data)
    if (!takeTokens(socket.data, messages.length, clock)) {
      refuse(
        socket,
        new CodedError('rate_limited', `a link may say ${LIMITS.messagesPerS} messages a second`),
        'rate_limit',
      )
      return
    }
    listener.receive(messages)
  } catch (error) {
    refuse(
      socket,
      error instanceof CodedError ? error : new CodedError('internal', 'the hub could not take the frame'),
      'bad_message',
    )
  }
}

/** Says why, then closes. */
function refuse(socket: Socket<SocketData>, error: CodedError, reason: CloseReason): void {
  const message: HubToAgent = { t: 'error', code: error.code, message: error.message, fatal: true }
  socket.send(encodeFrame(socket.data.codec, message), socket.data.codec === 'msgpack')
  socket.close(CLOSE_CODES[reason], error.message)
}

function takeTokens(data: SocketData, count: number, clock: Clock): boolean {
  const now = clock.now()
  data.tokens = Math.min(LIMITS.messageBurst, data.tokens + ((now - data.refilledAt) * LIMITS.messagesPerS) / 1000)
  data.refilledAt = now
  data.tokens -= count
  return data.tokens >= 0
}

function chooseCodec(request: HttpRequest): Codec | null {
  const offered = (request.headers.get('sec-websocket-protocol') ?? '').split(',').map((name) => name.trim())
  if (offered.includes(SUBPROTOCOLS.msgpack)) return 'msgpack'
  return offered.includes(SUBPROTOCOLS.json) ? 'json' : null
}

export function bearerOf(request: Pick<HttpRequest, 'headers'>): string | undefined {
  return /^Bearer +(\S+)$/i.exec(request.headers.get('authorization') ?? '')?.[1]
}

class SocketLink implements AgentLink {
  readonly carrier = 'socket'
  readonly linkId = uuidv7()
  readonly #socket: Socket<SocketData>

  constructor(socket: Socket<SocketData>) {
    this.#socket = socket
  }

  get agentId(): string {
    return this.#socket.data.identity.agentId
  }

  get credentialId(): string {
    return this.#socket.data.identity.credentialId
  }

  get remoteAddress(): string {
    return this.#socket.remoteAddress
  }

  get alive(): boolean {
    return this.#socket.alive
  }

  send(message: HubToAgent): SendOutcome {
    if (this.#socket.buffered() > LIMITS.softBackpressureBytes) {
      this.close('too_slow', 'the agent does not read what it is sent')
      return 'unsent'
    }
    return this.#socket.send(encodeFrame(this.#socket.data.codec, message), this.#socket.data.codec === 'msgpack')
  }

  close(reason: CloseReason, text: string): void {
    this.#socket.close(CLOSE_CODES[reason], text)
  }
}
