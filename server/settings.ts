import path from 'node:path'
import { z } from 'zod'
import { describeIssues } from '../protocol/codec.ts'

const settingsSchema = z.object({
  host: z.string().min(1).default('127.0.0.1'),
  port: z.coerce.number().int().min(0).max(65_535).default(8101),
  data: z.string().min(1).default('data'),
  logLevel: z.enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent']).default('info'),
})
export interface Settings extends z.infer<typeof settingsSchema> {
  /** Sets the administrator's token instead of making one. */
  adminToken: string | undefined
  /** 32 bytes in hex; without it the key is `<data>/secret.key`. */
  secretKey: string | undefined
}

/** A setting that is wrong: one clear line, exit code 2. */
export class SettingsError extends Error {}

/** Flags over environment over defaults. Throws a SettingsError that names the field. */
export function readSettings(flags: Readonly<Record<string, unknown>>, env: NodeJS.ProcessEnv): Settings {
  const parsed = settingsSchema.safeParse({
    host: flags.host ?? env.FUSION_HUB_HOST,
    port: flags.port ?? env.FUSION_HUB_PORT,
    data: flags.data ?? env.FUSION_HUB_DATA,
    logLevel: flags.logLevel ?? env.FUSION_HUB_LOG_LEVEL,
  })
  if (!parsed.success) throw new SettingsError(describeIssues(parsed.error))
  const secretKey = env.FUSION_HUB_SECRET_KEY
  if (secretKey !== undefined && !/^[0-9a-f]{64}$/i.test(secretKey)) {
    throw new SettingsError('FUSION_HUB_SECRET_KEY: 32 bytes as 64 hexadecimal digits')
  }
  const adminToken = env.FUSION_HUB_ADMIN_TOKEN
  if (adminToken !== undefined && adminToken.length < 16)
    throw new SettingsError('FUSION_HUB_ADMIN_TOKEN: at least 16 characters')
  return { ...parsed.data, data: path.resolve(parsed.data.data), adminToken, secretKey }
}
