// Reads a profile with speedscope's own importer and prints what it understood as JSON.
//
// Usage: node speedscope.mjs RELEASE_FOLDER PROFILE
//
// speedscope is published as one bundled web page. The importer is inside it, so the bundle is run
// up to the point where the page would be drawn, and the importer is taken from there by the place
// from which the page calls it.

import { readFileSync, readdirSync } from 'node:fs'
import { basename, join } from 'node:path'
import vm from 'node:vm'

const [release, profile] = process.argv.slice(2)
const bundle = readdirSync(release).find(name => /^speedscope-.*\.js$/.test(name))
if (!bundle) throw new Error(`no speedscope-*.js in ${release}`)
const source = readFileSync(join(release, bundle), 'utf8')

// The page's own call: `await importProfilesFromArrayBuffer(name, await response.arrayBuffer())`.
const importer = source.match(/await (\w+)\(\w+,await \w+\.arrayBuffer\(\)\)/)?.[1]
const drawing = source.lastIndexOf('console.log(`speedscope v')
if (!importer || drawing < 0) throw new Error(`${bundle} is not built the way this script knows`)

const element = () => ({ style: {}, appendChild() {}, setAttribute() {}, getContext: () => null })
Object.assign(globalThis, {
  window: globalThis,
  location: { href: 'file:///', protocol: 'file:', hash: '', search: '' },
  document: { createElement: element, head: element(), body: element(), addEventListener() {} },
  matchMedia: () => ({ matches: false, addListener() {}, addEventListener() {} }),
  addEventListener() {},
})
console.log = (...text) => console.error(...text)
vm.runInThisContext(
  `${source.slice(0, drawing)}globalThis.importProfile=${importer};return;${source.slice(drawing)}`,
)

const bytes = readFileSync(profile)
const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)
const group = await globalThis.importProfile(basename(profile), buffer)
if (!group) throw new Error(`speedscope does not know what ${profile} is`)

const describe = ({ name, file, line }) => ({ name, file: file ?? null, line: line ?? null })
const profiles = group.profiles.map(profile => {
  const frames = []
  profile.forEachFrame(frame =>
    frames.push({
      ...describe(frame),
      self: frame.getSelfWeight(),
      total: frame.getTotalWeight(),
    }),
  )
  // Calls in the order of time: how deep, of what, from when to when.
  const calls = []
  const open = []
  profile.forEachCall(
    (node, start) => {
      const call = { depth: open.length, name: node.frame.name, line: node.frame.line ?? null, start }
      open.push(call)
      calls.push(call)
    },
    (_, end) => (open.pop().end = end),
  )
  return {
    name: profile.getName(),
    unit: profile.getWeightUnit(),
    total: profile.getTotalWeight(),
    frames,
    calls,
  }
})
process.stdout.write(JSON.stringify({ name: group.name, profiles }))
