import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import java.util.zip.ZipInputStream;

/** Hello Grid with RabbitMQ's client: java -cp 'jars/*' HelloRabbitMQ.java [URL [QUEUE [CMD [ARGUMENTS]]]] */
public class HelloRabbitMQ {
    private static final String DEFAULT_URL =
            System.getenv().getOrDefault("CAROD_BROKER", "amqp://guest:guest@localhost:5672");

    public static void main(String[] args) throws Exception {
        String queue = args.length > 1 ? args[1] : "grid";
        Map<String, Object> job = Map.of(
                "Cmd", args.length > 2 ? args[2] : "/bin/echo",
                "Arguments", args.length > 3 ? args[3] : "Hello Grid");
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri((args.length > 0 ? args[0] : DEFAULT_URL).replaceFirst("/$", "")); // that would be a vhost ""
        factory.setAutomaticRecoveryEnabled(false); // the reply queue would be another one
        Connection connection = null;
        try {
            connection = factory.newConnection();
            run(connection, queue, job).get();
        } catch (ExecutionException failed) {
            fail(failed.getCause().getMessage());
        } catch (Exception failed) {
            fail("no broker: " + failed);
        }
        connection.close();
    }

    /** Submits a job. What it returns is done with the last reply, and fails if the job does. */
    private static CompletableFuture<Void> run(Connection connection, String queue, Map<String, Object> job)
            throws IOException {
        var done = new CompletableFuture<Void>();
        var channel = connection.createChannel();
        String replies = channel.queueDeclare().getQueue(); // exclusive: it goes with us
        channel.basicConsume(
                replies,
                true,
                (tag, reply) -> {
                    try {
                        if (isLast(reply)) {
                            done.complete(null);
                        }
                    } catch (Exception failed) {
                        done.completeExceptionally(failed);
                    }
                },
                tag -> done.completeExceptionally(new IOException("the reply queue is gone")),
                (tag, lost) -> done.completeExceptionally(new IOException("connection lost: " + lost.getMessage())));
        // What no queue takes comes back: mandatory.
        channel.addReturnListener(returned -> done.completeExceptionally(
                new IOException("no queue '" + queue + "' on the broker: is a node running?")));
        var properties = new BasicProperties.Builder()
                .messageId(UUID.randomUUID().toString())
                .replyTo(replies)
                .headers(job)
                .build();
        channel.basicPublish("", queue, true, properties, new byte[0]);
        return done;
    }

    /** Shows what a reply says. Throws if the job failed. */
    private static boolean isLast(Delivery reply) throws IOException {
        Map<String, Object> ad = reply.getProperties().getHeaders();
        System.out.println(Stream.of("JobStatus", "JobState", "ExitCode")
                .filter(ad::containsKey)
                .map(name -> name + "=" + ad.get(name))
                .collect(Collectors.joining(" ")));
        String text = new String(reply.getBody());
        if (text.startsWith("ERROR:")) {
            throw new IOException(text);
        }
        switch (((Number) ad.get("JobStatus")).intValue()) {
            case 3:
                throw new IOException("the job was removed: " + ad.get("RemoveReason"));
            case 5:
                throw new IOException("the job is held: " + ad.get("HoldReason"));
            case 4:
                var files = unzip(reply.getBody());
                System.out.print(files.get("_condor_stdout"));
                if (!"0".equals(String.valueOf(ad.get("ExitCode")))) { // there is none if a signal ended it
                    throw new IOException(files.get("_condor_stderr") + "ExitReason=" + ad.get("ExitReason"));
                }
                return true;
            default:
                return false;
        }
    }

    private static Map<String, String> unzip(byte[] archive) throws IOException {
        var files = new HashMap<String, String>();
        try (var zip = new ZipInputStream(new ByteArrayInputStream(archive))) {
            for (var entry = zip.getNextEntry(); entry != null; entry = zip.getNextEntry()) {
                files.put(entry.getName(), new String(zip.readAllBytes()));
            }
        }
        return files;
    }

    private static void fail(String why) {
        System.err.println(why);
        System.exit(1);
    }
}
