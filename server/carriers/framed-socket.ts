import { decodeFrame, encodeFrame } from '../../protocol/codec.ts'
import { CLOSE_CODES, type CloseReason, CodedError } from '../../protocol/errors.ts'
import { type Codec, SUBPROTOCOLS, WIRE_LIMITS } from '../../protocol/messages.ts'
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import { errorResponse, type HttpRequest, type Socket, type SocketRoute } from '../web/engine.ts'

interface FrameListener {
  receive(messages: readonly Record<string, unknown>[]): void
  closed(code: number, reason: string): void
}

interface SocketData<I> {
  identity: I
  codec: Codec
  tokens: number
  refilledAt: number
  listener: FrameListener | null
}

export interface FramedRouteOptions<I> {
  path: string
  /** Who is there, by the bearer token. Throws what is answered instead of the upgrade. */
  authenticate(bearer: string | undefined): Promise<I>
  open(socket: FramedSocket<I>): FrameListener
  clock: Clock
}

/** A socket that speaks messages, MessagePack or JSON by its subprotocol, within its budgets. */
export class FramedSocket<I> {
  readonly #socket: Socket<SocketData<I>>

  constructor(socket: Socket<SocketData<I>>) {
    this.#socket = socket
  }

  get identity(): I {
    return this.#socket.data.identity
  }

  get remoteAddress(): string {
    return this.#socket.remoteAddress
  }

  get alive(): boolean {
    return this.#socket.alive
  }

  /** `unsent` is proof that nothing was written. A reader that stays over its budget is closed. */
  send(message: unknown): 'sent' | 'unsent' {
    if (this.#socket.buffered() > LIMITS.softBackpressureBytes) {
      this.close('too_slow', 'the peer does not read what it is sent')
      return 'unsent'
    }
    const { codec } = this.#socket.data
    return this.#socket.send(encodeFrame(codec, message), codec === 'msgpack')
  }

  close(reason: CloseReason, text: string): void {
    this.#socket.close(CLOSE_CODES[reason], text)
  }
}

/** A WebSocket route whose frames are messages: authenticated before the upgrade, bounded in size and rate. */
export function framedRoute<I>(options: FramedRouteOptions<I>): SocketRoute<SocketData<I>> {
  return {
    path: options.path,
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
      socket.data.listener = options.open(new FramedSocket(socket))
    },
    message(socket, data, isBinary) {
      receive(socket, data, isBinary, options.clock)
    },
    closed(socket, code, reason) {
      socket.data.listener?.closed(code, reason)
    },
  }
}

function receive(socket: Socket<SocketData<unknown>>, data: Uint8Array, isBinary: boolean, clock: Clock): void {
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
function refuse(socket: Socket<SocketData<unknown>>, error: CodedError, reason: CloseReason): void {
  const message = { t: 'error', code: error.code, message: error.message, fatal: true }
  socket.send(encodeFrame(socket.data.codec, message), socket.data.codec === 'msgpack')
  socket.close(CLOSE_CODES[reason], error.message)
}

function takeTokens(data: SocketData<unknown>, count: number, clock: Clock): boolean {
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

function bearerOf(request: Pick<HttpRequest, 'headers'>): string | undefined {
  return /^Bearer +(\S+)$/i.exec(request.headers.get('authorization') ?? '')?.[1]
}
