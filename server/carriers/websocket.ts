import type { CloseReason } from '../../protocol/errors.ts'
import { uuidv7 } from '../../protocol/ids.ts'
import type { HubToAgent } from '../../protocol/messages.ts'
import type { AgentLink, LinkAcceptor, SendOutcome } from '../link.ts'
import type { FramedRouteOptions, FramedSocket } from './framed-socket.ts'

interface Identity {
  agentId: string
  credentialId: string
}

export interface AgentSocketOptions extends Pick<FramedRouteOptions<Identity>, 'authenticate' | 'clock'> {
  acceptor: LinkAcceptor
}

/** The normal carrier: one WebSocket an agent (protocol.md, Carriers). */
export function agentSocket({ acceptor, ...options }: AgentSocketOptions): FramedRouteOptions<Identity> {
  return { ...options, path: '/api/v1/agent/socket', open: (socket) => acceptor.accept(new SocketLink(socket)) }
}

class SocketLink implements AgentLink {
  readonly carrier = 'socket'
  readonly linkId = uuidv7()
  readonly #socket: FramedSocket<Identity>

  constructor(socket: FramedSocket<Identity>) {
    this.#socket = socket
  }

  get agentId(): string {
    return this.#socket.identity.agentId
  }

  get credentialId(): string {
    return this.#socket.identity.credentialId
  }

  get remoteAddress(): string {
    return this.#socket.remoteAddress
  }

  get alive(): boolean {
    return this.#socket.alive
  }

  send(message: HubToAgent): SendOutcome {
    return this.#socket.send(message)
  }

  close(reason: CloseReason, text: string): void {
    this.#socket.close(reason, text)
  }
}
