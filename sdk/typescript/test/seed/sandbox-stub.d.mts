/** The part of a hosted sandbox's client that the examples use. */
export declare class Sandbox {
  static create(template: string, options?: { envs?: Record<string, string> }): Promise<Sandbox>;
  readonly commands: {
    run(command: string, options?: { timeoutMs?: number }): Promise<CommandResult>;
  };
  kill(): Promise<void>;
}

export interface CommandResult {
  stdout: string;
  stderr: string;
  exitCode: number;
}
