import type { CloseReason } from '../protocol/errors.ts'
import type { HubToAgent } from '../protocol/messages.ts'

/**
 * What became of bytes handed to a carrier. `unsent` is a proof that nothing was written (the R2 way back from
 * `delivered` to `queued`); `sent` means only that they may arrive.
 */
export type SendOutcome = 'sent' | 'unsent'

/** The port every carrier implements: one agent's way to hear from us. It knows nothing of commands. */
export interface AgentLink {
  readonly carrier: 'socket' | 'exchange' | 'fustor'
  readonly linkId: string
  /** Whose credential opened it. */
  readonly agentId: string
  /** Which credential row, so that a revocation finds its links. */
  readonly credentialId: string
  readonly remoteAddress: string
  readonly alive: boolean
  send(message: HubToAgent): SendOutcome
  close(reason: CloseReason, text: string): void
}

/** What a carrier tells the gateway of a link, in this order: `receive` any number of times, then `closed` once. */
export interface LinkListener {
  /** One decoded frame. Never throws: what is wrong with a message is answered on the link. */
  receive(messages: readonly Record<string, unknown>[]): void
  closed(code: number, reason: string): void
}

/** The one door behind every carrier. */
export interface LinkAcceptor {
  accept(link: AgentLink): LinkListener
}
