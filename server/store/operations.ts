import * as access from './operations/access.ts'
import * as agents from './operations/agents.ts'
import * as commands from './operations/commands.ts'
import type { Tx } from './operations/tx.ts'

/** Everything that is asked of the store. Each runs inside one transaction and throws only when the store itself fails. */
export const READS = {
  getAgent: agents.getAgent,
  listAgents: agents.listAgents,
  findCredential: agents.findCredential,
  getCommand: commands.getCommand,
  listCommands: commands.listCommands,
  listExecutions: commands.listExecutions,
  getExecution: commands.getExecution,
  findToken: access.findToken,
  listTokens: access.listTokens,
  listEnrollments: access.listEnrollments,
  listAudit: access.listAudit,
} as const

export const WRITES = {
  enroll: agents.enroll,
  openLink: agents.openLink,
  linkReady: agents.linkReady,
  linkClosed: agents.linkClosed,
  resetLinks: agents.resetLinks,
  submit: commands.submit,
  report: commands.report,
  unsend: commands.unsend,
  cancel: commands.cancel,
  sweep: commands.sweep,
  createToken: access.createToken,
  revokeToken: access.revokeToken,
  createEnrollment: access.createEnrollment,
  appendAudit: access.appendAudit,
} as const

export const OPERATIONS = { ...READS, ...WRITES }
export type OperationName = keyof typeof OPERATIONS

type Call<F> = F extends (tx: Tx, args: infer A) => Promise<infer R>
  ? unknown extends A
    ? () => Promise<R>
    : (args: A) => Promise<R>
  : never

/** The port: one method per operation. A promise that resolves to a write's answer means that it is on disk. */
export type Store = { readonly [K in OperationName]: Call<(typeof OPERATIONS)[K]> } & {
  /** How long the oldest write has waited for its commit, in milliseconds; 0 when none waits (R14). */
  lagMs(): number
  close(): Promise<void>
}
