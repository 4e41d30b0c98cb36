import {
  type Compilable,
  type CompiledQuery,
  DummyDriver,
  Kysely,
  SqliteAdapter,
  SqliteIntrospector,
  SqliteQueryCompiler,
} from 'kysely'
import type { Schema } from './schema.ts'

/**
 * SQL in both dialects from one text: Kysely builds and types it, this module compiles it once and binds values by
 * name. (Building a query anew for each call costs more than SQLite takes to run it.)
 */
export type Dialect = 'sqlite'

const builders: Record<Dialect, Kysely<Schema>> = {
  sqlite: new Kysely<Schema>({
    dialect: {
      createAdapter: () => new SqliteAdapter(),
      createDriver: () => new DummyDriver(),
      createIntrospector: (db) => new SqliteIntrospector(db),
      createQueryCompiler: () => new SqliteQueryCompiler(),
    },
  }),
}

/** What a query needs of a connection: rows in, rows out, inside whatever transaction is open. */
export interface Connection {
  readonly dialect: Dialect
  execute(sql: string, parameters: readonly unknown[]): Promise<readonly unknown[]>
}

class Parameter {
  readonly name: string
  constructor(name: string) {
    this.name = name
  }
}

type Bind<A> = <K extends keyof A & string>(name: K) => A[K]

/** A statement compiled once per dialect; call it with a connection and its values. */
export type Prepared<A, R> = (connection: Connection, args: A) => Promise<R[]>

/**
 * Prepares a statement: `prepare<{ id: string }>()((db, bind) => db.selectFrom('agents').where('agent_id', '=', bind('id')))`.
 * `bind(name)` stands for the value that is given at each call.
 */
export function prepare<A = Record<string, never>>() {
  return <R>(build: (db: Kysely<Schema>, bind: Bind<A>) => Compilable<R>): Prepared<A, R> => {
    const compiled = new Map<Dialect, CompiledQuery<R>>()
    // The builder only carries the placeholder through to `parameters`; nothing ever reads it as a value.
    const bind = ((name: string) => new Parameter(name)) as unknown as Bind<A>
    return async (connection, args) => {
      let query = compiled.get(connection.dialect)
      if (!query) {
        query = build(builders[connection.dialect], bind).compile()
        compiled.set(connection.dialect, query)
      }
      const values = args as Readonly<Record<string, unknown>>
      const parameters = query.parameters.map((value) => (value instanceof Parameter ? values[value.name] : value))
      return (await connection.execute(query.sql, parameters)) as R[]
    }
  }
}

/** Runs a query that is built anew for this call: lists with filters, and rare statements. */
export async function run<R>(connection: Connection, build: (db: Kysely<Schema>) => Compilable<R>): Promise<R[]> {
  const query = build(builders[connection.dialect]).compile()
  return (await connection.execute(query.sql, query.parameters)) as R[]
}
