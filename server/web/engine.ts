import { Buffer } from 'node:buffer'
import { createServer } from 'node:net'
import { CodedError } from '../../protocol/errors.ts'
import { LIMITS } from '../limits.ts'
import {
  LISTEN_SHARED,
  loadUws,
  type Uws,
  type UwsApp,
  type UwsRequest,
  type UwsResponse,
  type UwsSocket,
} from './uws-binding.ts'

/** A request, copied off the engine before anything is awaited: the engine's own object dies with the first await. */
export interface HttpRequest {
  readonly method: string
  readonly path: string
  readonly query: string
  readonly headers: ReadonlyMap<string, string>
  readonly remoteAddress: string
}

export interface HttpResponse {
  status: number
  headers: readonly (readonly [string, string])[]
  body: Uint8Array | string
}

/** Answers one request. `body` reads what was sent, and refuses with `too_big` what is over the limit. */
export type HttpHandler = (request: HttpRequest, body: () => Promise<Uint8Array>) => Promise<HttpResponse>

export type UpgradeDecision<T> = { accept: T; protocol: string } | { refuse: HttpResponse }

export interface SocketRoute<T> {
  path: string
  upgrade(request: HttpRequest): Promise<UpgradeDecision<T>>
  open(socket: Socket<T>): void
  /** `data` is valid only until this call returns: decode it here. */
  message(socket: Socket<T>, data: Uint8Array, isBinary: boolean): void
  closed(socket: Socket<T>, code: number, reason: string): void
}

/** The one guarded way to touch a socket. After `closed` every call is a no-op that says so. */
export class Socket<T> {
  readonly data: T
  readonly remoteAddress: string
  readonly protocol: string
  alive = true
  #raw: UwsSocket<unknown> | null = null

  constructor(data: T, remoteAddress: string, protocol: string) {
    this.data = data
    this.remoteAddress = remoteAddress
    this.protocol = protocol
  }

  attach(raw: UwsSocket<unknown>): void {
    this.#raw = raw
  }

  detach(): void {
    this.alive = false
    this.#raw = null
  }

  /** Bytes that the peer has not taken yet. */
  buffered(): number {
    return this.#raw?.getBufferedAmount() ?? 0
  }

  /** `unsent` is proof that no byte was written. */
  send(frame: Uint8Array, isBinary: boolean): 'sent' | 'unsent' {
    if (!this.alive || !this.#raw) return 'unsent'
    return this.#raw.send(frame, isBinary) === 2 ? 'unsent' : 'sent'
  }

  close(code: number, reason: string): void {
    const raw = this.#raw
    if (!this.alive || !raw) return
    // The engine calls the close handler inside end(), so nobody may come back here.
    this.alive = false
    raw.end(code, truncateUtf8(reason, 123))
  }
}

function truncateUtf8(text: string, bytes: number): string {
  let cut = text.slice(0, bytes)
  while (Buffer.byteLength(cut) > bytes) cut = cut.slice(0, -1)
  return cut
}

/** uWebSockets.js behind the web server port. */
export class WebEngine {
  readonly why: string
  readonly #uws: Uws
  readonly #app: UwsApp
  #token: unknown = null

  constructor() {
    const { uws, why } = loadUws()
    this.#uws = uws
    this.#app = uws.App()
    this.why = why
  }

  http(pattern: string, handler: HttpHandler): void {
    this.#app.any(pattern, (res, req) => {
      const request = copyRequest(res, req)
      const exchange = { aborted: false }
      const chunks: Buffer[] = []
      let failed: CodedError | null = null
      let wake: () => void = () => undefined
      const whole = new Promise<void>((resolve) => {
        wake = resolve
      })
      res.onAborted(() => {
        exchange.aborted = true
        wake()
      })
      let size = 0
      res.onData((chunk, isLast) => {
        size += chunk.byteLength
        if (size > LIMITS.apiBodyBytes)
          failed = new CodedError('too_big', `the body is over ${LIMITS.apiBodyBytes} bytes`)
        // The engine takes the chunk back when this returns.
        else chunks.push(Buffer.from(Buffer.from(chunk)))
        if (isLast) wake()
      })
      const body = async () => {
        await whole
        if (failed) throw failed
        return Buffer.concat(chunks)
      }
      handler(request, body).then(
        (response) => {
          if (!exchange.aborted) writeResponse(res, response)
        },
        (error: Error) => {
          if (!exchange.aborted) writeResponse(res, errorResponse(error))
        },
      )
    })
  }

  socket<T>(route: SocketRoute<T>): void {
    this.#app.ws<{ socket: Socket<T> }>(route.path, {
      maxPayloadLength: LIMITS.hardBackpressureBytes,
      // The agents' own pings tell who is there; this only clears what is half open. (1..7 would abort the process.)
      idleTimeout: 120,
      maxBackpressure: LIMITS.hardBackpressureBytes,
      sendPingsAutomatically: true,
      upgrade: (res, req, context) => {
        const request = copyRequest(res, req)
        let aborted = false
        res.onAborted(() => {
          aborted = true
        })
        route.upgrade(request).then(
          (decision) => {
            if (aborted) return
            if ('refuse' in decision) {
              writeResponse(res, decision.refuse)
              return
            }
            const socket = new Socket(decision.accept, request.remoteAddress, decision.protocol)
            const key = request.headers.get('sec-websocket-key') ?? ''
            // The engine copies the fields of what it is given, not the object itself.
            res.cork(() => res.upgrade({ socket }, key, decision.protocol, '', context))
          },
          (error: Error) => {
            if (!aborted) writeResponse(res, errorResponse(error))
          },
        )
      },
      open: (ws) => {
        const { socket } = ws.getUserData()
        socket.attach(ws)
        route.open(socket)
      },
      message: (ws, message, isBinary) => route.message(ws.getUserData().socket, new Uint8Array(message), isBinary),
      close: (ws, code, message) => {
        const { socket } = ws.getUserData()
        socket.detach()
        route.closed(socket, code, Buffer.from(Buffer.from(message)).toString('utf8'))
      },
    })
  }

  /** Listens on host and port (0: any free one) and answers the port. Throws where it is taken. */
  async listen(host: string, port: number): Promise<number> {
    const free = await claimPort(host, port)
    return new Promise((resolve, reject) => {
      this.#app.listen(host, free, LISTEN_SHARED, (token) => {
        if (!token) {
          reject(new Error(`cannot listen on ${host}:${free}`))
          return
        }
        this.#token = token
        resolve(free)
      })
    })
  }

  stopListening(): void {
    if (this.#token) this.#uws.us_listen_socket_close(this.#token)
    this.#token = null
  }

  close(): void {
    this.stopListening()
    this.#app.close()
  }
}

function copyRequest(res: UwsResponse, req: UwsRequest): HttpRequest {
  const headers = new Map<string, string>()
  req.forEach((key, value) => {
    headers.set(key, headers.has(key) ? `${headers.get(key)}, ${value}` : value)
  })
  return {
    method: req.getMethod().toUpperCase(),
    path: req.getUrl(),
    query: req.getQuery() ?? '',
    headers,
    remoteAddress: Buffer.from(res.getRemoteAddressAsText()).toString('utf8'),
  }
}

function writeResponse(res: UwsResponse, response: HttpResponse): void {
  res.cork(() => {
    res.writeStatus(String(response.status))
    for (const [key, value] of response.headers) {
      if (key !== 'content-length') res.writeHeader(key, value)
    }
    res.end(response.body)
  })
}

/** The shape of every error over HTTP; what is not ours to show stays in the log. */
export function errorResponse(error: Error, requestId?: string): HttpResponse {
  const coded =
    error instanceof CodedError
      ? error
      : new CodedError('internal', 'something went wrong in the hub; its log has the request id')
  const headers: [string, string][] = [['content-type', 'application/json']]
  if (coded.retryAfterS !== undefined) headers.push(['retry-after', String(coded.retryAfterS)])
  const body = { detail: coded.message, code: coded.code, request_id: requestId, ...coded.details }
  return { status: coded.status, headers, body: JSON.stringify(body) }
}

/**
 * Finds out by Node's own listener whether the port is free. The engine's exclusive mode cannot be used: it also refuses
 * a port whose old connections still linger after a kill -9, for a minute; its shared mode accepts a port that is taken.
 */
function claimPort(host: string, port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer()
    probe.once('error', (error) => reject(new Error(`cannot listen on ${host}:${port}: ${error.message}`)))
    probe.listen({ host, port, exclusive: true }, () => {
      const address = probe.address()
      const found = typeof address === 'object' && address ? address.port : port
      probe.close(() => resolve(found))
    })
  })
}
