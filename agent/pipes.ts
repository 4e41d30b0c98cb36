import type { PipeStatus } from '../protocol/messages.ts'
import type { AgentConfig } from './config.ts'
import { walk } from './sources/fs.ts'

interface Pipe {
  status: PipeStatus
  /** The settings it runs with, to tell on reload whether they changed. */
  fingerprint: string
  root: string
  driver: string
  abort: AbortController
}

export interface ReloadReport {
  started: string[]
  stopped: string[]
  unchanged: string[]
}

/** The agent's pipes and what their sources hold. */
export class Pipes {
  readonly #pipes = new Map<string, Pipe>()
  readonly #changed: () => void

  constructor(changed: () => void) {
    this.#changed = changed
  }

  statuses(): PipeStatus[] {
    return [...this.#pipes.values()].map((pipe) => ({ ...pipe.status }))
  }

  /** Moves to a configuration: stops what is gone, starts what is new, leaves alone what is the same. */
  apply(config: AgentConfig): ReloadReport {
    const { pipes, sources, senders } = config.settings
    const report: ReloadReport = { started: [], stopped: [], unchanged: [] }
    const wanted = new Map<string, string>()
    for (const [id, pipe] of Object.entries(pipes)) {
      const off = pipe.disabled || sources[pipe.source]?.disabled || senders[pipe.sender]?.disabled
      if (!off) wanted.set(id, JSON.stringify([pipe, sources[pipe.source], senders[pipe.sender]]))
    }
    for (const [id, pipe] of this.#pipes) {
      if (wanted.get(id) === pipe.fingerprint) continue
      pipe.abort.abort()
      this.#pipes.delete(id)
      if (!wanted.has(id)) report.stopped.push(id)
    }
    for (const [id, fingerprint] of wanted) {
      const running = this.#pipes.get(id)
      if (running) {
        report.unchanged.push(id)
        continue
      }
      const { source, sender } = pipes[id] as { source: string; sender: string }
      const { driver, uri } = sources[source] as { driver: string; uri: string }
      const status: PipeStatus = { id, state: 'STOPPED', source, sender, events_pushed: 0, errors: 0 }
      this.#pipes.set(id, { status, fingerprint, root: uri, driver, abort: new AbortController() })
      this.start(id)
      report.started.push(id)
    }
    this.#changed()
    return report
  }

  /** Starts a pipe and answers its state; undefined where there is none of that id. */
  start(id: string): string | undefined {
    const pipe = this.#pipes.get(id)
    if (!pipe) return undefined
    if (pipe.status.state === 'RUNNING') return pipe.status.state
    if (pipe.driver !== 'fs') {
      this.#fail(pipe, `unsupported_source: this agent has no driver "${pipe.driver}"`)
      return pipe.status.state
    }
    pipe.abort = new AbortController()
    pipe.status = { ...pipe.status, state: 'RUNNING' }
    this.#changed()
    const { signal } = pipe.abort
    walk(pipe.root, { recursive: true, signal, onProgress: () => undefined }).then(
      ({ files, directories, bytes }) => {
        if (signal.aborted) return
        pipe.status = { ...pipe.status, files, directories, bytes }
        this.#changed()
      },
      (error: Error) => {
        if (!signal.aborted) this.#fail(pipe, error.message)
      },
    )
    return pipe.status.state
  }

  /** Stops a pipe; a reload does not start it again. */
  stop(id: string): string | undefined {
    const pipe = this.#pipes.get(id)
    if (!pipe) return undefined
    pipe.abort.abort()
    pipe.status = { ...pipe.status, state: 'STOPPED' }
    this.#changed()
    return pipe.status.state
  }

  #fail(pipe: Pipe, message: string): void {
    pipe.status = { ...pipe.status, state: 'ERROR', errors: pipe.status.errors + 1, last_error: message.slice(0, 1024) }
    this.#changed()
  }

  stopAll(): void {
    for (const pipe of this.#pipes.values()) pipe.abort.abort()
  }
}
