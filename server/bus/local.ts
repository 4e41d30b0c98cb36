/** The in-process bus: hints about what changed, between the parts of one replica. */
export class LocalBus<T> {
  readonly #listeners = new Set<(event: T) => void>()

  publish(event: T): void {
    for (const listener of [...this.#listeners]) listener(event)
  }

  /** Answers how to stop listening. */
  subscribe(listener: (event: T) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }
}
