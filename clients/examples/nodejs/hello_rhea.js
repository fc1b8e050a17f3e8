// Hello Grid over AMQP 1.0, with rhea: node hello_rhea.js [URL [QUEUE [CMD [ARGUMENTS]]]]
// On brokers that do not make up reply queues (RabbitMQ), REPLY_QUEUE in the environment names one.
import { randomUUID } from 'node:crypto';
import { strFromU8, unzipSync } from 'fflate';
import rhea from 'rhea';

const defaultUrl = process.env.CAROD_BROKER ?? 'amqp://localhost:5672';
const [url = defaultUrl, queue = 'grid', Cmd = '/bin/echo', Arguments = 'Hello Grid'] = process.argv.slice(2);

/** Shows what a reply says; whether it is the last one. A job that failed throws. */
function show({ application_properties: ad, body }) {
  const said = ['JobStatus', 'JobState', 'ExitCode'].filter((name) => name in ad);
  console.log(said.map((name) => `${name}=${ad[name]}`).join(' '));
  const content = body?.content ?? Buffer.alloc(0); // a data section
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

function end(connection, failure) {
  if (failure) {
    console.error(failure);
    process.exitCode = 1;
  }
  connection.close();
}

const { hostname: host, port, username, password } = new URL(url);
const container = rhea.create_container();
const connection = container.connect({
  host,
  port: port || 5672,
  username: decodeURIComponent(username) || undefined, // none: anonymous
  password: decodeURIComponent(password),
  reconnect: false,
});
const named = process.env.REPLY_QUEUE;
connection.open_receiver({ source: named ? { address: named } : { dynamic: true } });

container.on('receiver_open', ({ receiver }) => {
  const reply_to = receiver.source.address;
  const job = { message_id: randomUUID(), reply_to, application_properties: { Cmd, Arguments } };
  connection.open_sender(queue).once('sendable', ({ sender }) => sender.send(job));
});
container.on('message', ({ message }) => {
  try {
    if (show(message)) end(connection);
  } catch (error) {
    end(connection, error.message);
  }
});
for (const outcome of ['rejected', 'released']) {
  container.on(outcome, () => end(connection, `queue '${queue}' did not take the job: is a node running?`));
}
container.on('sender_error', ({ sender: { error } }) => {
  end(connection, `no queue '${queue}' on the broker: is a node running? ${error.description}`);
});
container.on('receiver_error', ({ receiver: { error } }) => end(connection, `no reply queue: ${error.description}`));
container.on('session_error', ({ session: { error } }) => end(connection, error.description));
container.on('connection_error', ({ error }) => end(connection, `no connection: ${error.description}`));
container.on('disconnected', ({ error }) => end(connection, `no connection to ${host}: ${error?.message ?? 'lost'}`));
