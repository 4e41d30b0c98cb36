import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { afterAll, expect, it } from 'vitest'
import {
  removeFolder,
  startAgent,
  startHub,
  type TestAgent,
  type TestHub,
  temporaryFolder,
} from '../support/processes.ts'

const ROUNDS = 12
const HUB = 'test/fault/processes/hub.mjs'
const AGENT = 'test/fault/processes/agent.mjs'

interface Execution {
  exec_id: string
  state: string
  error: { code: string; may_have_run: boolean } | null
}

const folder = temporaryFolder()
let hub: TestHub
let agent: TestAgent

afterAll(async () => {
  await agent.process.kill('SIGKILL')
  await hub.process.kill('SIGKILL')
  removeFolder(folder)
})

it(`loses nothing and repeats nothing over ${ROUNDS} kills of hub or agent under load`, async () => {
  const handlerLog = path.join(folder, 'handler.log')
  const agentFolder = path.join(folder, 'agent')
  mkdirSync(agentFolder)
  const env = { HANDLER_LOG: handlerLog }
  hub = await startHub(path.join(folder, 'data'), { entry: HUB })
  const { port, data } = hub
  agent = await startAgent(hub, 'nas-07', agentFolder, { entry: AGENT, env })
  const confirmed: { id: string; hubOnly: boolean }[] = []

  for (let round = 0; round < ROUNDS; round++) {
    const killsHub = round % 2 === 0
    const submit = async () => {
      // A hub that dies in the middle confirms nothing; what it did confirm has to be there later.
      const answer = await hub
        .call<{ command_id: string }>('POST', '/agents/nas-07/command', { type: 'counter' })
        .catch(() => null)
      if (answer?.status === 200) confirmed.push({ id: answer.body.command_id, hubOnly: killsHub })
    }
    const load = Array.from({ length: 12 }, submit)
    await Promise.race(load)
    if (killsHub) {
      await hub.process.kill('SIGKILL')
      await Promise.all(load)
      const seen = agent.process.output().length
      hub = await startHub(data, { port, entry: HUB })
      await agent.process.line(new RegExp(`^[^]{${seen},}link ready`))
    } else {
      await agent.process.kill('SIGKILL')
      await Promise.all(load)
      agent = await startAgent(hub, 'nas-07', agentFolder, { entry: AGENT, env })
    }
  }

  const executions: (Execution & { hubOnly: boolean })[] = []
  for (const { id, hubOnly } of confirmed) {
    const { body } = await hub.call<{ executions: Execution[] }>('GET', `/commands/${id}/executions?wait=30`)
    executions.push(...body.executions.map((execution) => ({ ...execution, hubOnly })))
  }
  const lines = existsSync(handlerLog) ? readFileSync(handlerLog, 'utf8').trim().split('\n') : []
  const count = (what: string, id: string) => lines.filter((line) => line === `${what} ${id}`).length

  expect(executions.length).toBe(confirmed.length)
  for (const execution of executions) {
    const begins = count('begin', execution.exec_id)
    // Stuck 0: everything has ended, and with the agent's word.
    expect(['succeeded', 'failed'], JSON.stringify(execution)).toContain(execution.state)
    // Twice 0.
    expect(begins, `begins of ${execution.exec_id}`).toBeLessThanOrEqual(1)
    if (execution.state === 'succeeded') expect(count('end', execution.exec_id)).toBe(1)
    // Only the death of an agent may leave a doubt.
    if (execution.state === 'failed') {
      expect(execution.error).toMatchObject({ code: 'interrupted', may_have_run: true })
    }
  }
  // Not vacuous: a hub that fails everything must not pass.
  const succeeded = executions.filter((execution) => execution.state === 'succeeded').length
  expect(succeeded / executions.length).toBeGreaterThan(0.6)
  expect(confirmed.length).toBeGreaterThan(ROUNDS)
}, 180_000)
