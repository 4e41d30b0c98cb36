import type { Hono } from 'hono'
import type { HttpHandler } from './engine.ts'

// biome-ignore lint/suspicious/noExplicitAny: the bridge carries any application, whatever its variables are.
type AnyHono = Hono<any>

/** Serves a Hono application behind the web server port. */
export function honoHandler(app: AnyHono): HttpHandler {
  return async (request, readBody) => {
    const hasBody = request.method !== 'GET' && request.method !== 'HEAD'
    const body = hasBody ? await readBody() : null
    const host = request.headers.get('host') ?? 'localhost'
    const url = `http://${/^[\w.:[\]-]+$/.test(host) ? host : 'localhost'}${request.path}${request.query === '' ? '' : `?${request.query}`}`
    const init = {
      method: request.method,
      headers: [...request.headers] as [string, string][],
      body: body && body.length > 0 ? new Uint8Array(body) : null,
    }
    const response = await app.fetch(new Request(url, init), { remoteAddress: request.remoteAddress })
    return {
      status: response.status,
      headers: [...response.headers],
      body: new Uint8Array(await response.arrayBuffer()),
    }
  }
}
