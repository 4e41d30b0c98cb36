import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto'
import type { Logger } from 'pino'
import { CodedError } from '../../protocol/errors.ts'
import { uuidv7 } from '../../protocol/ids.ts'
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import type { Store } from '../store/operations.ts'

/** What each role may do (api.md). `*` stands for the rest of a scope. */
export const ROLES = {
  viewer: ['agents:read', 'commands:read', 'config:read', 'sessions:read', 'views:read', 'replicas:read'],
  operator: [
    'agents:read',
    'commands:read',
    'config:read',
    'sessions:read',
    'views:read',
    'replicas:read',
    'commands:execute:*',
    'config:write',
    'sessions:write',
    'agents:write',
  ],
  administrator: ['*'],
} as const
export type Role = keyof typeof ROLES

export interface Principal {
  readonly id: string
  readonly name: string
  readonly scopes: readonly string[]
}

export function hasScope(principal: Principal, scope: string): boolean {
  return principal.scopes.some(
    (granted) => granted === scope || (granted.endsWith('*') && scope.startsWith(granted.slice(0, -1))),
  )
}

export function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

/** Seals what has to be read back (AES-256-GCM): nonce, tag and text, in base64. */
function seal(key: Buffer, text: string): string {
  const nonce = randomBytes(12)
  const cipher = createCipheriv('aes-256-gcm', key, nonce)
  const body = Buffer.concat([cipher.update(text, 'utf8'), cipher.final()])
  return Buffer.concat([nonce, cipher.getAuthTag(), body]).toString('base64')
}

function unseal(key: Buffer, sealed: string): string {
  const data = Buffer.from(sealed, 'base64')
  const decipher = createDecipheriv('aes-256-gcm', key, data.subarray(0, 12))
  decipher.setAuthTag(data.subarray(12, 28))
  return Buffer.concat([decipher.update(data.subarray(28)), decipher.final()]).toString('utf8')
}

const secret = () => randomBytes(32).toString('base64url')

export interface AccessParts {
  store: Store
  clock: Clock
  logger: Logger
  secretKey: Buffer
}

/** Who may do what. Secrets are shown once and kept as SHA-256: 256 random bits need no slower hash. */
export class Access {
  readonly #parts: AccessParts

  constructor(parts: AccessParts) {
    this.#parts = parts
  }

  /** Whose token it is. Looked up by its hash, so that no comparison leaks how much of it was right. */
  async principalOf(token: string | undefined): Promise<Principal> {
    if (!token) throw new CodedError('unauthenticated', 'X-Management-Key header is required')
    const row = await this.#parts.store.findToken({ hash: sha256(token) })
    const now = this.#parts.clock.now()
    if (!row || row.revoked_at !== null || (row.expires_at !== null && row.expires_at <= now)) {
      throw new CodedError('invalid_token', 'Invalid management key')
    }
    return { id: row.token_id, name: row.name, scopes: JSON.parse(row.scopes) }
  }

  /** Throws `missing_scope` that names it, and records the denial. */
  async demand(
    principal: Principal,
    scope: string,
    about: { target: string | null; ip: string | null; request_id: string | null },
  ): Promise<void> {
    if (hasScope(principal, scope)) return
    await this.#parts.store.appendAudit({
      actor: principal.name,
      action: scope,
      outcome: 'denied',
      code: 'missing_scope',
      ...about,
    })
    throw new CodedError('missing_scope', `this needs the scope ${scope}, which "${principal.name}" does not have`)
  }

  /** Makes a token and answers it, the only time that it is seen. `fixed` sets its text instead. */
  async createToken(request: {
    name: string
    role: Role
    createdBy: string
    expiresInS?: number | undefined
    fixed?: string | undefined
  }): Promise<{ tokenId: string; token: string }> {
    const tokenId = uuidv7()
    const token = request.fixed ?? `fht_${secret()}`
    await this.#parts.store.createToken({
      token_id: tokenId,
      hash: sha256(token),
      name: request.name,
      role: request.role,
      scopes: JSON.stringify(ROLES[request.role]),
      selector: null,
      created_by: request.createdBy,
      expires_at: request.expiresInS === undefined ? null : this.#parts.clock.now() + request.expiresInS * 1000,
    })
    return { tokenId, token }
  }

  /** Makes an enrolment token: `uses` machines may join with it until it expires; `agentId` binds it to one id. */
  async createEnrollment(request: {
    name: string
    uses: number
    ttlMs?: number | undefined
    agentId?: string | undefined
    labels: Record<string, string>
    createdBy: string
  }): Promise<{ enrollmentId: string; token: string; expiresAt: number }> {
    const enrollmentId = uuidv7()
    const token = `fhe_${secret()}`
    const expiresAt = this.#parts.clock.now() + (request.ttlMs ?? LIMITS.enrollmentTtlMs)
    await this.#parts.store.createEnrollment({
      enrollment_id: enrollmentId,
      hash: sha256(token),
      name: request.name,
      agent_id: request.agentId ?? null,
      labels: JSON.stringify(request.labels),
      uses_left: request.uses,
      expires_at: expiresAt,
      created_by: request.createdBy,
    })
    return { enrollmentId, token, expiresAt }
  }

  /** Gives a machine its credential; the same `key` gets the same answer until the first `ready`. */
  async enroll(request: {
    token: string
    agent_id: string
    labels: Record<string, string>
    key: string
  }): Promise<{ agent_id: string; credential: string }> {
    const credential = `fha_${secret()}`
    const outcome = await this.#parts.store.enroll({
      token_hash: sha256(request.token),
      agent_id: request.agent_id,
      labels: request.labels,
      key_hash: sha256(request.key),
      credential_id: uuidv7(),
      credential_hash: sha256(credential),
      sealed: seal(this.#parts.secretKey, credential),
    })
    switch (outcome.outcome) {
      case 'enrolled':
        return { agent_id: outcome.agent_id, credential: unseal(this.#parts.secretKey, outcome.sealed) }
      case 'invalid_enrollment':
        throw new CodedError(
          'invalid_enrollment',
          'the enrolment token is not known, is spent or has expired; make one with "fusion-hub enroll create"',
        )
      case 'agent_id_taken':
        throw new CodedError(
          'agent_id_taken',
          `"${request.agent_id}" belongs to another machine; use another agent_id, or "fusion-hub enroll create --agent ${request.agent_id}" to replace it`,
        )
    }
  }

  /** Which agent a credential belongs to: 401 where it is not known, 403 where it was revoked. */
  async agentOf(bearer: string | undefined): Promise<{ agentId: string; credentialId: string }> {
    if (!bearer) throw new CodedError('unauthenticated', 'an agent sends its credential as Authorization: Bearer')
    const row = await this.#parts.store.findCredential({ hash: sha256(bearer) })
    if (!row) throw new CodedError('invalid_credential', 'the agent credential is not known; enrol the agent')
    if (row.state === 'revoked')
      throw new CodedError('revoked', 'the agent credential was revoked or replaced; enrol the agent anew')
    return { agentId: row.agent_id, credentialId: row.credential_id }
  }
}
