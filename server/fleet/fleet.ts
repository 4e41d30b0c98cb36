import type { HostStatus, HubToAgent, PipeStatus } from '../../protocol/messages.ts'
import type { Clock } from '../clock.ts'
import type { AgentLink } from '../link.ts'
import type { ReadyLink } from '../store/operations/lanes.ts'

/** A link after `ready`: the agent may be sent commands. */
export interface LiveAgent {
  readonly link: AgentLink
  readonly linkEpoch: number
  readonly ledgerId: string
  /** When `welcome` went out, by the hub's clock: the zero of `expires_hub_ms` (R10). */
  readonly welcomedAt: number
  lastHeardAt: number
  pipes: PipeStatus[]
  host: HostStatus | null
}

/** Who is connected to this replica, and how it is doing: in memory, derived, never the truth. */
export class Fleet {
  readonly #live = new Map<string, LiveAgent>()
  readonly #clock: Clock

  constructor(clock: Clock) {
    this.#clock = clock
  }

  add(agentId: string, agent: LiveAgent): void {
    this.#live.set(agentId, agent)
  }

  /** Removes only that very link: the late close of an older one must not evict the newer. */
  remove(agentId: string, link: AgentLink): void {
    if (this.#live.get(agentId)?.link === link) this.#live.delete(agentId)
  }

  get(agentId: string): LiveAgent | undefined {
    return this.#live.get(agentId)
  }

  all(): IterableIterator<[string, LiveAgent]> {
    return this.#live.entries()
  }

  get size(): number {
    return this.#live.size
  }

  /** Where a command for this agent may be sent now; null where it is away. */
  readyLink(agentId: string): ReadyLink | null {
    const agent = this.#live.get(agentId)
    if (!agent?.link.alive) return null
    return { agent_id: agentId, link_epoch: agent.linkEpoch, ledger_id: agent.ledgerId }
  }

  readyLinks(): ReadyLink[] {
    return [...this.#live.keys()].map((id) => this.readyLink(id)).filter((link) => link !== null)
  }

  /** Sends on the link of that epoch, or proves that nothing was written. */
  send(agentId: string, linkEpoch: number, message: HubToAgent): 'sent' | 'unsent' {
    const agent = this.#live.get(agentId)
    return agent && agent.linkEpoch === linkEpoch ? agent.link.send(message) : 'unsent'
  }

  /** Milliseconds since this agent's `welcome`, and from there to `at` (R10). */
  hubMs(agent: LiveAgent, at: number = this.#clock.now()): number {
    return at - agent.welcomedAt
  }
}
