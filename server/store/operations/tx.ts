import type { Connection } from '../sql.ts'

/** What an operation works with: a connection inside its transaction, and the hub's time (R15: the store's own, with PostgreSQL). */
export interface Tx {
  readonly connection: Connection
  readonly now: number
}
