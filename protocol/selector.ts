import { CodedError } from './errors.ts'

export type Labels = Readonly<Record<string, string>>

type Requirement =
  | { kind: 'equals'; key: string; value: string }
  | { kind: 'differs'; key: string; value: string }
  | { kind: 'in'; key: string; values: readonly string[] }
  | { kind: 'exists'; key: string }
  | { kind: 'missing'; key: string }

const KEY = '[A-Za-z0-9_./-]{1,64}'
const VALUE = '[^\\s,()!=]{1,256}'
const FORMS: readonly [RegExp, (m: RegExpExecArray) => Requirement][] = [
  [
    new RegExp(`^(${KEY})\\s+in\\s*\\(([^()]*)\\)$`),
    (m) => ({ kind: 'in', key: m[1] as string, values: readValues(m[2] as string) }),
  ],
  [
    new RegExp(`^(${KEY})\\s*!=\\s*(${VALUE})$`),
    (m) => ({ kind: 'differs', key: m[1] as string, value: m[2] as string }),
  ],
  [
    new RegExp(`^(${KEY})\\s*==?\\s*(${VALUE})$`),
    (m) => ({ kind: 'equals', key: m[1] as string, value: m[2] as string }),
  ],
  [new RegExp(`^!\\s*(${KEY})$`), (m) => ({ kind: 'missing', key: m[1] as string })],
  [new RegExp(`^(${KEY})$`), (m) => ({ kind: 'exists', key: m[1] as string })],
]

function readValues(list: string): string[] {
  const values = list.split(',').map((value) => value.trim())
  if (values.some((value) => !new RegExp(`^${VALUE}$`).test(value))) {
    throw new CodedError('bad_selector', `in (${list}) needs values separated by commas`)
  }
  return values
}

/** A label selector, read once and matched often. */
export interface Selector {
  readonly text: string
  matches(labels: Labels): boolean
}

/**
 * Reads `k=v, k!=v, k in (a,b), k, !k`; the comma is "and" (commands.md, Submitting).
 * Throws `bad_selector` that names the part it could not read.
 */
export function parseSelector(text: string): Selector {
  if (text.length > 4096) throw new CodedError('bad_selector', 'the selector is longer than 4096 characters')
  const parts = text
    .split(/,(?![^(]*\))/)
    .map((part) => part.trim())
    .filter((part) => part !== '')
  if (parts.length === 0)
    throw new CodedError('bad_selector', 'the selector is empty; name agents instead, or use a label that all have')
  const requirements = parts.map(readRequirement)
  return { text, matches: (labels) => requirements.every((requirement) => holds(requirement, labels)) }
}

function readRequirement(part: string): Requirement {
  for (const [form, make] of FORMS) {
    const match = form.exec(part)
    if (match) return make(match)
  }
  throw new CodedError('bad_selector', `cannot read "${part.slice(0, 80)}"; use k=v, k!=v, k in (a,b), k or !k`)
}

function holds(requirement: Requirement, labels: Labels): boolean {
  const value = Object.hasOwn(labels, requirement.key) ? labels[requirement.key] : undefined
  switch (requirement.kind) {
    case 'equals':
      return value === requirement.value
    case 'differs':
      return value !== requirement.value
    case 'in':
      return value !== undefined && requirement.values.includes(value)
    case 'exists':
      return value !== undefined
    case 'missing':
      return value === undefined
  }
}
