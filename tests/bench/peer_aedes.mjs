// The aedes broker with passwords and rights on: node peer_aedes.mjs PACKAGE_FOLDER CONFIG.json
import { createServer } from 'node:net'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createHash, timingSafeEqual } from 'node:crypto'

const [folder, config] = process.argv.slice(2)
const { Aedes } = createRequire(folder + '/')('aedes')
const { port, passwords, rights } = JSON.parse(readFileSync(config))
const digest = (text) => createHash('sha256').update(text).digest()
const hashes = new Map(Object.entries(passwords).map(([name, hash]) => [name, Buffer.from(hash, 'hex')]))

// rights are all of the form # or prefix/#
const covers = (name, topic) =>
  (rights[name] ?? []).some((filter) => filter === '#' || topic.startsWith(filter.slice(0, -1)))

const broker = await Aedes.createBroker({
  concurrency: 1000,
  authenticate (client, name, password, done) {
    const hash = hashes.get(name)
    client.user = name
    const right = hash !== undefined && timingSafeEqual(hash, digest(password))
    if (right) return done(null, true)
    done(Object.assign(new Error('no'), { returnCode: 4 }), false)
  },
  authorizePublish (client, packet, done) {
    done(client === null || covers(client.user, packet.topic) ? null : new Error('no right'))
  },
  authorizeSubscribe (client, subscription, done) {
    done(null, covers(client.user, subscription.topic) ? subscription : null)
  }
})
const server = createServer({ noDelay: true }, broker.handle)
server.listen({ port, host: '127.0.0.1', backlog: 4096 })
process.on('SIGTERM', () => process.exit(0))
