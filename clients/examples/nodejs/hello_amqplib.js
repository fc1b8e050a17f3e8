// Hello Grid with amqplib: node hello_amqplib.js [URL [QUEUE [CMD [ARGUMENTS]]]]
import { randomUUID } from 'node:crypto';
import { connect } from 'amqplib';
import { strFromU8, unzipSync } from 'fflate';

const defaultUrl = process.env.CAROD_BROKER ?? 'amqp://guest:guest@localhost:5672';
const [url = defaultUrl, queue = 'grid', Cmd = '/bin/echo', Arguments = 'Hello Grid'] = process.argv.slice(2);

/** Shows what a reply says; whether it is the last one. A job that failed throws. */
function show({ properties: { headers: ad }, content }) {
  const said = ['JobStatus', 'JobState', 'ExitCode'].filter((name) => name in ad);
  console.log(said.map((name) => `${name}=${ad[name]}`).join(' '));
  if (content.subarray(0, 6).toString() === 'ERROR:') throw new Error(content.toString());
  if (ad.JobStatus === 3) throw new Error(`the job was removed: ${ad.RemoveReason}`);
  if (ad.JobStatus === 5) throw new Error(`the job is held: ${ad.HoldReason}`);
  if (ad.JobStatus !== 4) return false; // not completed yet
  const files = unzipSync(content);
  process.stdout.write(files._condor_stdout);
  // A job that a signal ended has no ExitCode.
  if (ad.ExitCode !== 0) throw new Error(`${strFromU8(files._condor_stderr)}ExitReason=${ad.ExitReason}`);
  return true;
}

/** Submits the job; resolves with its last reply. */
async function run(connection) {
  const channel = await connection.createChannel();
  const { queue: replyTo } = await channel.assertQueue('', { exclusive: true }); // the broker names it; it goes with us
  await new Promise((resolve, reject) => {
    channel.on('return', () => reject(new Error(`no queue '${queue}' on the broker: is a node running?`)));
    connection.on('error', (error) => reject(new Error(`connection lost: ${error.message}`)));
    connection.on('close', () => reject(new Error('connection lost')));
    const received = (reply) => {
      try {
        if (show(reply)) resolve();
      } catch (error) {
        reject(error);
      }
    };
    channel.consume(replyTo, received, { noAck: true }).catch(reject);
    const headers = { Cmd, Arguments };
    // What no queue takes comes back: mandatory.
    channel.publish('', queue, Buffer.alloc(0), { messageId: randomUUID(), replyTo, headers, mandatory: true });
  });
}

try {
  const connection = await connect(url).catch((error) => Promise.reject(new Error(`no broker: ${error.message}`)));
  try {
    await run(connection);
  } finally {
    await connection.close().catch(() => {}); // it may be the connection that failed
  }
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
