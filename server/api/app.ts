import { Hono } from 'hono'
import type { Logger } from 'pino'
import { z } from 'zod'
import { describeIssues } from '../../protocol/codec.ts'
import { CodedError } from '../../protocol/errors.ts'
import { agentIdSchema, uuidSchema, uuidv7 } from '../../protocol/ids.ts'
import { commandRequestShape, enrollRequestSchema, labelsSchema } from '../../protocol/messages.ts'
import type { Access, Principal } from '../access/access.ts'
import { ROLES } from '../access/access.ts'
import type { Commands } from '../commands/commands.ts'
import type { Fleet } from '../fleet/fleet.ts'
import { LIMITS } from '../limits.ts'
import type { Store } from '../store/operations.ts'
import { errorResponse } from '../web/engine.ts'
import { showAgent, showCommand, showExecution } from './show.ts'

export interface ApiParts {
  store: Store
  fleet: Fleet
  access: Access
  commands: Commands
  logger: Logger
  draining(): boolean
}

type Env = { Bindings: { remoteAddress: string }; Variables: { principal: Principal; requestId: string } }

const waitSchema = z.coerce.number().min(0).max(LIMITS.waitS).default(0)
const limitSchema = z.coerce.number().int().min(1).max(500).default(100)

/** V1's body: the arguments stand beside the type. */
const agentCommandSchema = z.looseObject({ type: z.string().min(1).max(64) }).extend({
  offline: commandRequestShape.offline,
  expires_in_s: commandRequestShape.expires_in_s,
  timeout_s: commandRequestShape.timeout_s,
})

const tokenSchema = z.strictObject({
  name: z.string().min(1).max(128),
  role: z.enum(Object.keys(ROLES) as [keyof typeof ROLES]),
  expires_in_s: z.number().positive().optional(),
})

const enrollmentSchema = z.strictObject({
  name: z.string().min(1).max(128).default('enrolment'),
  uses: z.number().int().min(1).max(100_000).default(1),
  expires_in_s: z
    .number()
    .positive()
    .max(30 * 86_400)
    .optional(),
  agent_id: agentIdSchema.optional(),
  labels: labelsSchema.default({}),
})

/** The HTTP API (api.md). Each route: parse, authorise, call, answer. */
export function createApi(parts: ApiParts): Hono<Env> {
  const { store, fleet, access, commands } = parts
  const app = new Hono<Env>()

  app.use(async (c, next) => {
    c.set('requestId', uuidv7())
    await next()
    c.header('x-request-id', c.get('requestId'))
  })
  app.onError((error, c) => {
    if (!(error instanceof CodedError))
      parts.logger.error({ request_id: c.get('requestId'), err: error.message }, 'request failed')
    const response = errorResponse(error, c.get('requestId'))
    return new Response(response.body as string, {
      status: response.status,
      headers: response.headers as [string, string][],
    })
  })
  app.notFound(() => {
    throw new CodedError('not_found', 'there is nothing at this address')
  })

  app.get('/healthz', (c) => c.json({ status: 'ok' }))
  app.get('/readyz', (c) => {
    const ready = !parts.draining() && store.lagMs() <= LIMITS.slowCommitMs
    return c.json({ ready, draining: parts.draining(), store_lag_ms: store.lagMs() }, ready ? 200 : 503)
  })

  app.post('/api/v1/agent/enroll', async (c) => {
    const body = parse(enrollRequestSchema, await readJson(c.req.raw))
    return c.json(
      await access.enroll({
        token: body.token,
        agent_id: body.agent_id ?? uuidv7(),
        labels: body.labels ?? {},
        key: body.key,
      }),
    )
  })

  const management = new Hono<Env>()
  management.use(async (c, next) => {
    const bearer = /^Bearer +(\S+)$/i.exec(c.req.header('authorization') ?? '')?.[1]
    c.set('principal', await access.principalOf(bearer ?? c.req.header('x-management-key')))
    await next()
  })
  const allow =
    (scope: string) =>
    async (
      c: {
        get(key: 'principal'): Principal
        get(key: 'requestId'): string
        env: Env['Bindings']
        req: { path: string }
      },
      next: () => Promise<void>,
    ) => {
      await access.demand(c.get('principal'), scope, {
        target: c.req.path,
        ip: c.env.remoteAddress,
        request_id: c.get('requestId'),
      })
      await next()
    }
  const record = (
    c: { get(key: 'principal'): Principal; get(key: 'requestId'): string; env: Env['Bindings'] },
    action: string,
    target: string,
  ) =>
    store.appendAudit({
      actor: c.get('principal').name,
      action,
      target,
      outcome: 'allowed',
      code: null,
      ip: c.env.remoteAddress,
      request_id: c.get('requestId'),
    })

  management.get('/agents', allow('agents:read'), async (c) => {
    const agents = (await store.listAgents()).map((row) => showAgent(row, fleet.get(row.agent_id)))
    return c.json({ agents })
  })
  management.get('/agents/:id', allow('agents:read'), async (c) => {
    const row = await store.getAgent({ agent_id: c.req.param('id') })
    if (!row) throw new CodedError('unknown_agent', `there is no agent '${c.req.param('id').slice(0, 64)}'`)
    return c.json(showAgent(row, fleet.get(row.agent_id)))
  })
  management.post('/agents/:id/command', async (c) => {
    const agentId = c.req.param('id')
    const { type, offline, expires_in_s, timeout_s, ...args } = parse(agentCommandSchema, await readJson(c.req.raw))
    const wait = parse(waitSchema, c.req.query('wait'))
    if (!(await store.getAgent({ agent_id: agentId })))
      throw new CodedError('unknown_agent', `No active sessions found for agent '${agentId.slice(0, 64)}'`)
    await demandExecute(c, type)
    const request = { type, args, targets: { agent_ids: [agentId] }, offline, expires_in_s, timeout_s }
    const submitted = await commands.submit(
      request,
      c.get('principal'),
      idempotencyKey(c.req.header('idempotency-key')),
    )
    await record(c, `commands:execute:${type}`, submitted.command_id)
    const online = fleet.readyLink(agentId) ? 1 : 0
    const answer = {
      status: 'ok',
      agent_id: agentId,
      command: type,
      sessions_queued: online,
      total_sessions: online,
      command_id: submitted.command_id,
      execution_id: submitted.executions[0]?.exec_id,
    }
    if (wait === 0) return c.json(answer)
    const [execution] = await commands.wait(submitted.command_id, wait, c.req.raw.signal)
    return c.json({ ...answer, execution: execution && showExecution(execution) })
  })

  const demandExecute = (
    c: { get(key: 'principal'): Principal; get(key: 'requestId'): string; env: Env['Bindings']; req: { path: string } },
    type: string,
  ) =>
    access.demand(c.get('principal'), `commands:execute:${type}`, {
      target: c.req.path,
      ip: c.env.remoteAddress,
      request_id: c.get('requestId'),
    })

  management.post('/commands', async (c) => {
    const request = parse(z.strictObject(commandRequestShape), await readJson(c.req.raw))
    const wait = parse(waitSchema, c.req.query('wait'))
    await demandExecute(c, request.type)
    const submitted = await commands.submit(
      request,
      c.get('principal'),
      idempotencyKey(c.req.header('idempotency-key')),
    )
    await record(c, `commands:execute:${request.type}`, submitted.command_id)
    if (wait === 0) return c.json(submitted, 202)
    const executions = await commands.wait(submitted.command_id, wait, c.req.raw.signal)
    return c.json({ ...submitted, executions: executions.map(showExecution) })
  })
  management.get('/commands', allow('commands:read'), async (c) => {
    const limit = parse(limitSchema, c.req.query('limit'))
    const rows = await store.listCommands({ limit, before: c.req.query('cursor') ?? null })
    return c.json({ commands: rows.map(showCommand), cursor: rows.length === limit ? rows.at(-1)?.command_id : null })
  })
  management.get('/commands/:id', allow('commands:read'), async (c) => {
    const id = parse(uuidSchema, c.req.param('id'))
    const row = await store.getCommand({ command_id: id })
    if (!row) throw new CodedError('unknown_command', `there is no command ${id}`)
    return c.json(showCommand(row))
  })
  management.get('/commands/:id/executions', allow('commands:read'), async (c) => {
    const id = parse(uuidSchema, c.req.param('id'))
    const wait = parse(waitSchema, c.req.query('wait'))
    const rows = await commands.wait(id, wait, c.req.raw.signal)
    if (rows.length === 0) throw new CodedError('unknown_command', `there is no command ${id}`)
    return c.json({ executions: rows.map(showExecution) })
  })
  management.post('/commands/:id/cancel', async (c) => {
    const id = parse(uuidSchema, c.req.param('id'))
    const command = await store.getCommand({ command_id: id })
    if (command) await demandExecute(c, command.type)
    const body = parse(
      z.strictObject({ exec_id: uuidSchema.optional(), force: z.boolean().default(false) }),
      await readJson(c.req.raw, {}),
    )
    const executions = await commands.cancel(id, body.exec_id ?? null, body.force)
    await record(c, 'commands:cancel', id)
    return c.json({ executions })
  })
  management.post('/commands/:id/retry', async (c) => {
    const id = parse(uuidSchema, c.req.param('id'))
    const command = await store.getCommand({ command_id: id })
    if (command) await demandExecute(c, command.type)
    const body = parse(z.strictObject({ force: z.boolean().default(false) }), await readJson(c.req.raw, {}))
    const submitted = await commands.retry(
      id,
      c.get('principal'),
      idempotencyKey(c.req.header('idempotency-key')),
      body.force,
    )
    await record(c, 'commands:retry', id)
    return c.json(submitted, 202)
  })

  management.get('/tokens', allow('tokens:read'), async (c) => {
    const rows = await store.listTokens()
    return c.json({ tokens: rows.map(({ hash: _hash, ...row }) => ({ ...row, scopes: JSON.parse(row.scopes) })) })
  })
  management.post('/tokens', allow('tokens:write'), async (c) => {
    const body = parse(tokenSchema, await readJson(c.req.raw))
    const made = await access.createToken({
      name: body.name,
      role: body.role,
      createdBy: c.get('principal').name,
      expiresInS: body.expires_in_s,
    })
    await record(c, 'tokens:create', made.tokenId)
    return c.json({ token_id: made.tokenId, token: made.token }, 201)
  })
  management.delete('/tokens/:id', allow('tokens:write'), async (c) => {
    const revoked = await store.revokeToken({ token_id: c.req.param('id') })
    if (!revoked) throw new CodedError('not_found', 'there is no such token, or it was revoked before')
    await record(c, 'tokens:revoke', c.req.param('id'))
    return c.json({ status: 'ok' })
  })
  management.get('/enrollments', allow('enrollments:read'), async (c) => {
    const rows = await store.listEnrollments()
    return c.json({ enrollments: rows.map(({ hash: _hash, ...row }) => ({ ...row, labels: JSON.parse(row.labels) })) })
  })
  management.post('/enrollments', allow('enrollments:write'), async (c) => {
    const body = parse(enrollmentSchema, await readJson(c.req.raw, {}))
    const ttlMs = body.expires_in_s === undefined ? undefined : body.expires_in_s * 1000
    const made = await access.createEnrollment({
      name: body.name,
      uses: body.uses,
      ttlMs,
      agentId: body.agent_id,
      labels: body.labels,
      createdBy: c.get('principal').name,
    })
    await record(c, 'enrollments:create', made.enrollmentId)
    return c.json(
      { enrollment_id: made.enrollmentId, token: made.token, expires_at: new Date(made.expiresAt).toISOString() },
      201,
    )
  })
  management.get('/audit', allow('audit:read'), async (c) => {
    const limit = parse(limitSchema, c.req.query('limit'))
    const before = parse(z.coerce.number().int().positive().nullable().default(null), c.req.query('cursor') ?? null)
    return c.json({ audit: await store.listAudit({ limit, before }) })
  })

  app.route('/api/v1/management', management)
  return app
}

function parse<T extends z.ZodType>(schema: T, value: unknown): z.infer<T> {
  const parsed = schema.safeParse(value)
  if (!parsed.success) throw new CodedError('bad_message', describeIssues(parsed.error))
  return parsed.data
}

async function readJson(request: Request, whenEmpty?: unknown): Promise<unknown> {
  const text = await request.text()
  if (text === '' && whenEmpty !== undefined) return whenEmpty
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new CodedError('bad_json', `the body is not JSON: ${(error as Error).message.slice(0, 120)}`)
  }
}

function idempotencyKey(header: string | undefined): string | null {
  if (header === undefined) return null
  if (header.length < 1 || header.length > 128)
    throw new CodedError('bad_message', 'Idempotency-Key: 1 to 128 characters')
  return header
}
