import type { Logger } from 'pino'
import { checkMessage } from '../protocol/codec.ts'
import { type CloseReason, CodedError } from '../protocol/errors.ts'
import {
  type AgentToHub,
  agentToHubSchemas,
  type Hello,
  type HubToAgent,
  type OpenItem,
  WIRE_LIMITS,
} from '../protocol/messages.ts'
import type { Clock } from './clock.ts'
import { announce, deliver, type RouteParts } from './commands/route.ts'
import type { LiveAgent } from './fleet/fleet.ts'
import { LIMITS } from './limits.ts'
import type { AgentLink, LinkAcceptor, LinkListener } from './link.ts'
import type { ReportArgs } from './store/operations/commands.ts'

/** Where a link is in its handshake (protocol.md): `hello` -> `welcome` -> `ready`, and no command before that. */
type Stage =
  | { at: 'new' }
  | { at: 'greeting' }
  | { at: 'welcomed'; hello: Hello; linkEpoch: number; welcomedAt: number; open: OpenItem[] }
  | { at: 'ready'; live: LiveAgent }
  | { at: 'closed' }

export interface GatewayParts extends RouteParts {
  clock: Clock
  logger: Logger
  replica: string
}

/** The one door behind every carrier. */
export class Gateway implements LinkAcceptor {
  readonly #parts: GatewayParts
  readonly #links = new Set<LinkSession>()

  constructor(parts: GatewayParts) {
    this.#parts = parts
  }

  accept(link: AgentLink): LinkListener {
    const session = new LinkSession(link, this.#parts, {
      ended: () => this.#links.delete(session),
      ready: (epoch) => this.#replaceOlder(session, epoch),
      revoked: (ids) => this.closeCredentials(ids),
    })
    this.#links.add(session)
    return session
  }

  /** Cuts the links of credentials that were replaced or revoked. */
  closeCredentials(ids: readonly string[]): void {
    for (const session of [...this.#links]) {
      if (ids.includes(session.link.credentialId)) session.end('revoked', 'the credential was replaced or revoked')
    }
  }

  /** Gives up links that miss their handshake or have gone silent. */
  checkSilence(now: number): void {
    for (const session of [...this.#links]) session.checkSilence(now)
  }

  /** Tells every agent to come back soon, and closes. */
  drain(): void {
    for (const session of [...this.#links]) {
      session.send({ t: 'reconnect', after_ms: Math.round(500 + Math.random() * 1500) })
      session.end('going_away', 'the hub is shutting down')
    }
  }

  #replaceOlder(newer: LinkSession, epoch: number): void {
    for (const session of [...this.#links]) {
      const older = session.link.agentId === newer.link.agentId && session.epoch() < epoch
      if (older) session.end('replaced', 'a newer link of this agent is open')
    }
  }
}

interface SessionEvents {
  ended(): void
  ready(epoch: number): void
  revoked(ids: readonly string[]): void
}

class LinkSession implements LinkListener {
  readonly link: AgentLink
  readonly #parts: GatewayParts
  readonly #on: SessionEvents
  readonly #openedAt: number
  #stage: Stage = { at: 'new' }

  constructor(link: AgentLink, parts: GatewayParts, on: SessionEvents) {
    this.link = link
    this.#parts = parts
    this.#on = on
    this.#openedAt = parts.clock.now()
  }

  send(message: HubToAgent): void {
    this.link.send(message)
  }

  end(reason: CloseReason, text: string): void {
    this.link.close(reason, text)
  }

  /** The epoch it was given; a link that has none yet is newer than all. */
  epoch(): number {
    if (this.#stage.at === 'ready') return this.#stage.live.linkEpoch
    return this.#stage.at === 'welcomed' ? this.#stage.linkEpoch : Number.POSITIVE_INFINITY
  }

  checkSilence(now: number): void {
    if (this.#stage.at === 'ready') {
      if (now - this.#stage.live.lastHeardAt > LIMITS.offlineMs) this.end('silent', 'nothing was heard for 60 s')
    } else if (now - this.#openedAt > LIMITS.handshakeMs) {
      this.end('handshake_timeout', 'no hello and ready within 10 s')
    }
  }

  receive(messages: readonly Record<string, unknown>[]): void {
    const reports = new Map<string, ReportArgs>()
    for (const raw of messages) {
      if (this.#stage.at === 'closed') return
      try {
        this.#take(checkMessage(agentToHubSchemas, raw), reports)
      } catch (error) {
        const coded =
          error instanceof CodedError ? error : new CodedError('internal', 'the hub could not take the message')
        const fatal = this.#stage.at !== 'ready'
        if (fatal) this.#refuse(coded, 'bad_message')
        else this.send({ t: 'error', code: coded.code, message: coded.message, fatal: false })
      }
    }
    for (const report of reports.values()) this.#report(report)
  }

  closed(code: number, reason: string): void {
    const stage = this.#stage
    this.#stage = { at: 'closed' }
    this.#on.ended()
    this.#parts.fleet.remove(this.link.agentId, this.link)
    const epoch = stage.at === 'ready' ? stage.live.linkEpoch : stage.at === 'welcomed' ? stage.linkEpoch : null
    if (epoch === null) return
    const why = reason === '' ? `the socket closed with ${code}` : `${reason} (${code})`
    this.#background(
      this.#parts.store.linkClosed({ agent_id: this.link.agentId, link_epoch: epoch, reason: why }),
      'link close',
    )
  }

  #take(message: AgentToHub, reports: Map<string, ReportArgs>): void {
    if (message.t === 'hello') {
      if (this.#stage.at !== 'new') throw new CodedError('unexpected_hello', 'a link says hello once')
      this.#greet(message)
      return
    }
    if (this.#stage.at === 'new') throw new CodedError('hello_expected', `"${message.t}" before hello`)
    if (message.t === 'bye') {
      this.end('going_away', 'bye')
      return
    }
    if (this.#stage.at === 'welcomed') {
      this.#settle(this.#stage, message)
      return
    }
    if (this.#stage.at !== 'ready') {
      throw new CodedError('not_ready', `"${message.t}" is legal only after ready`)
    }
    const { live } = this.#stage
    live.lastHeardAt = this.#parts.clock.now()
    switch (message.t) {
      case 'ping':
        this.send({ t: 'pong', hub_ms: this.#parts.fleet.hubMs(live) })
        return
      case 'status':
        live.host = message.host ?? live.host
        live.pipes = mergePipes(live.pipes, message.pipes ?? [])
        return
      case 'accepted':
        this.#reportOf(reports, live, message.exec_id).accepted = true
        return
      case 'started':
        this.#reportOf(reports, live, message.exec_id).started = true
        return
      case 'progress': {
        const { t: _t, exec_id: execId, ...progress } = message
        this.#reportOf(reports, live, execId).progress = progress
        return
      }
      case 'result':
        this.#reportOf(reports, live, message.exec_id).result = message
        return
      case 'cancel_reply':
        if (message.outcome === 'refused') {
          this.#reportOf(reports, live, message.exec_id).cancel_refused = {
            cancel_no: message.cancel_no,
            reason: message.reason ?? '',
          }
        }
        return
      case 'error':
        this.#parts.logger.warn({ agent_id: this.link.agentId, code: message.code }, 'the agent reports an error')
        return
      default:
        throw new CodedError('unknown_message', `"${message.t}" is not served by this release`)
    }
  }

  #reportOf(reports: Map<string, ReportArgs>, live: LiveAgent, execId: string): ReportArgs {
    let report = reports.get(execId)
    if (!report) {
      const link = { agent_id: this.link.agentId, link_epoch: live.linkEpoch, ledger_id: live.ledgerId }
      report = {
        agent_id: this.link.agentId,
        exec_id: execId,
        link,
        accepted: false,
        started: false,
        progress: null,
        result: null,
        cancel_refused: null,
      }
      reports.set(execId, report)
    }
    return report
  }

  /** Commit, then confirm: the agent may forget a result only once it is on disk here. */
  #report(report: ReportArgs): void {
    const done = this.#parts.store.report(report).then((outcome) => {
      announce(this.#parts, outcome.changes)
      deliver(this.#parts, outcome.frames)
      if (report.result) {
        const unknown = outcome.known ? {} : { unknown: true }
        this.send({ t: 'result_ok', exec_ids: [report.exec_id], settled_below: outcome.settled_below, ...unknown })
      } else if (!outcome.known) {
        const about = { exec_id: report.exec_id }
        this.send({
          t: 'error',
          code: 'unknown_execution',
          message: 'no such execution of this agent',
          fatal: false,
          about,
        })
      }
    })
    this.#background(done, 'report')
  }

  #greet(hello: Hello): void {
    if (hello.agent_id !== this.link.agentId) {
      this.#refuse(new CodedError('foreign_credential', `the credential is not for ${hello.agent_id}`), 'forbidden')
      return
    }
    this.#stage = { at: 'greeting' }
    const opened = this.#parts.store.openLink({
      hello,
      credential_id: this.link.credentialId,
      replica: this.#parts.replica,
      carrier: this.link.carrier,
      link_id: this.link.linkId,
      client_ip: this.link.remoteAddress,
    })
    const done = opened.then((outcome) => {
      if (this.#stage.at !== 'greeting') return
      if (outcome.outcome === 'identity_conflict') {
        this.#refuse(new CodedError('identity_conflict', outcome.reason), 'identity_conflict')
        return
      }
      const welcomedAt = this.#parts.clock.now()
      this.#stage = { at: 'welcomed', hello, linkEpoch: outcome.link_epoch, welcomedAt, open: [] }
      this.send({
        t: 'welcome',
        link_id: this.link.linkId,
        link_epoch: outcome.link_epoch,
        replica: this.#parts.replica,
        ping_s: LIMITS.pingS,
        limits: {
          message_bytes: WIRE_LIMITS.messageBytes,
          output_bytes: WIRE_LIMITS.outputBytes,
          messages_per_s: LIMITS.messagesPerS,
        },
      })
    })
    this.#background(done, 'hello')
  }

  #settle(stage: Extract<Stage, { at: 'welcomed' }>, message: AgentToHub): void {
    if (message.t === 'open') {
      stage.open.push(...message.items)
      if (stage.open.length > LIMITS.storeQueue * 10) throw new CodedError('too_big', 'too many open executions')
      return
    }
    if (message.t === 'ping') {
      this.send({ t: 'pong', hub_ms: this.#parts.clock.now() - stage.welcomedAt })
      return
    }
    if (message.t !== 'ready') throw new CodedError('not_ready', `"${message.t}" is legal only after ready`)
    if (message.link_epoch !== stage.linkEpoch) throw new CodedError('bad_message', 'ready: not the epoch of this link')
    const { hello, linkEpoch, welcomedAt, open } = stage
    const live: LiveAgent = {
      link: this.link,
      linkEpoch,
      ledgerId: hello.ledger_id,
      welcomedAt,
      lastHeardAt: this.#parts.clock.now(),
      pipes: hello.pipes,
      host: null,
    }
    // Frames that follow `ready` at once are taken: the store works in order, so they find it settled.
    this.#stage = { at: 'ready', live }
    const settled = this.#parts.store.linkReady({
      agent_id: this.link.agentId,
      credential_id: this.link.credentialId,
      link_epoch: linkEpoch,
      ledger_id: hello.ledger_id,
      open,
    })
    const done = settled.then((outcome) => {
      if (outcome.outcome === 'stale') return this.end('replaced', 'a newer link of this agent is open')
      if (outcome.outcome === 'spent') return this.end('revoked', 'the enrolment token was spent by another machine')
      this.#parts.fleet.add(this.link.agentId, live)
      if (!this.link.alive) this.#parts.fleet.remove(this.link.agentId, this.link)
      this.#on.ready(linkEpoch)
      this.#on.revoked(outcome.revoked_credentials)
      announce(this.#parts, outcome.changes)
      for (const cancel of outcome.cancels) this.send({ t: 'cancel', ...cancel, force: false })
      deliver(this.#parts, outcome.frames)
    })
    this.#background(done, 'ready')
  }

  #refuse(error: CodedError, reason: CloseReason): void {
    this.send({ t: 'error', code: error.code, message: error.message, fatal: true })
    this.end(reason, error.message)
  }

  /** A store that fails here costs the link: the agent comes back and everything is settled anew. */
  #background(work: Promise<unknown>, what: string): void {
    work.catch((error: Error) => {
      this.#parts.logger.error({ agent_id: this.link.agentId, err: error.message }, `${what} failed`)
      this.end('unavailable', 'the hub cannot reach its store')
    })
  }
}

function mergePipes(known: LiveAgent['pipes'], changed: LiveAgent['pipes']): LiveAgent['pipes'] {
  const byId = new Map(known.map((pipe) => [pipe.id, pipe]))
  for (const pipe of changed) byId.set(pipe.id, pipe)
  return [...byId.values()].slice(0, 1024)
}
